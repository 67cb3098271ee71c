"""Compute the features of the frozen trunk and keep them."""
