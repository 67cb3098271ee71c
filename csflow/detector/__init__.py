"""Define what a trained detector is: model, score, threshold, files and inference engine."""
