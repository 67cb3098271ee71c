"""Compute the features of the frozen trunk, keep them, and find them again."""
