"""Share between steps what one run of a line needs."""
