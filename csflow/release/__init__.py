"""Decide when a detector is promoted, rolled back and removed, and do it."""
