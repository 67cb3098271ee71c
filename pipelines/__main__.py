"""Run ``csflow`` as ``python -m pipelines`` from the project's folder."""

from __future__ import annotations

import os
from pathlib import Path

from csflow.cli import main
from csflow.system.project import PROJECT

if __name__ == "__main__":
    os.environ.setdefault(PROJECT, str(Path(__file__).resolve().parents[1]))
    main()
