"""Measure the speed of csflow and its peers on the same weights, features and images (benchmarks/README.md).

python benchmarks/speed.py --quick
python benchmarks/speed.py --work train_step,memory --width 1024 --peer official=../cs-flow --json result.json
"""

from sidebyside.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
