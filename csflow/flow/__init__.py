"""The cross-scale flow, and how it is trained."""
