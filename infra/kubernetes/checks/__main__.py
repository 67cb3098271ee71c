"""Check rendered manifests: ``PYTHONPATH=infra/kubernetes python -m checks FILE…``."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from checks import load, problems

PROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"


def main(files: list[str]) -> int:
    """Print the problems of each file; return 1 if there are any, else 0."""
    version = tomllib.loads(PROJECT.read_text())["project"]["version"]
    found = [f"{file}: {problem}" for file in files for problem in problems(load(Path(file).read_text()), version)]
    print("\n".join(found) or f"{len(files)} rendered sets fit together")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
