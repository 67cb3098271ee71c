"""``python -m csflow.cli``: the same as ``csflow``."""

from csflow.cli import main

main()
