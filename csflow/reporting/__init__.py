"""What people look at: figures, the report of an evaluation, the comparison of two detectors."""
