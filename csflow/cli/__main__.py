"""Run ``python -m csflow.cli``, which is the same as ``csflow``."""

from csflow.cli import main

main()
