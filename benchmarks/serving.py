"""Measure the server of csflow beside that of version 0.4 and a plain one (benchmarks/README.md).

python benchmarks/serving.py --quick
python benchmarks/serving.py --work clients,starvation --peer 0.4=../csflow-0.4 --json result.json
"""

from servers.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
