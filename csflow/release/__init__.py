"""Decide when and how a detector goes live, back and away."""
