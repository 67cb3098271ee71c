"""Ablations: change one thing of a line's configuration at a time, measure quality and time, and choose."""
