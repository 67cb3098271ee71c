"""Talk to MLflow: runs, registered models, and the database or server behind both."""
