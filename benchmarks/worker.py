"""Run one implementation in a process of its own; ``speed.py`` starts it and talks to it (not for people).

python benchmarks/worker.py ROLE FOLDER [CHECKOUT]
"""

import sys
from pathlib import Path

from sidebyside.child import serve
from sidebyside.roles import driver

if __name__ == "__main__":
    serve(lambda channel: driver(sys.argv[1], Path(sys.argv[2]), channel, *sys.argv[3:]))
