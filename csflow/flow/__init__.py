"""Hold the cross-scale flow and train it."""
