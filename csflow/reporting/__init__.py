"""Draw figures, and write the report of an evaluation and the comparison of two detectors."""
