"""Measure the tables of the CS-Flow paper on your own copy of the images (benchmarks/README.md).

python benchmarks/paper.py --table 2 --line mtd
python benchmarks/paper.py --table 3 --line mtd --quick
python benchmarks/paper.py --table 1 --data MVTEC_ROOT
"""

from published.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
