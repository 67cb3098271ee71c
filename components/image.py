"""The one image every component runs in; local runs ignore it."""

import os

BASE_IMAGE = os.environ.get("CSFLOW_IMAGE", "csflow-train:0.1.0")
