"""Name the image in which every component runs; local runs without a Docker engine ignore it."""

import os
from importlib.metadata import version

# Built by `make images`, tagged with the version of the project.
BASE_IMAGE = os.environ.get("CSFLOW_IMAGE") or f"csflow-train:{version('csflow')}"
