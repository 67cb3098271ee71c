"""A line's configuration with one thing changed at a time: what to try, what came out, what to choose."""
