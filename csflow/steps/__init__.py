"""Run the steps of a line's retraining: one idempotent function each, with plain inputs and outputs."""
