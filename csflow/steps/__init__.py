"""The steps of a line's retraining: one function each, plain inputs and outputs, idempotent."""
