"""The command line: read the settings, run the works in order, print the table, write the JSON file."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sidebyside import work_features, work_scoring, work_training
from sidebyside.bounds import broken
from sidebyside.process import WorkerError
from sidebyside.progress import say
from sidebyside.rows import Row, table, write_json
from sidebyside.session import Peer, Session
from sidebyside.settings import SCALES, WORKS, Settings

QUICK = {"size": 128, "width": 32, "batch": 4, "score_batch": 8, "images": 8, "epochs": 2, "repeats": 2}
SCORING = frozenset({"score_one", "score_batch", "load", "model_file"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return 0 if all results are right, 1 if one is wrong or an implementation failed, 2 for wrong usage."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        settings, peers = _settings(given), [_peer(text) for text in given.peer]
        if peers and settings.scales != SCALES:
            raise ValueError(
                f"The peers know {SCALES} scales only, not {settings.scales}. Leave out --peer or --scales."
            )
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory(prefix="csflow-speed-") as folder:
        settings.save(Path(folder) / "settings.json")
        session = Session(settings, Path(folder), peers)
        try:
            machine = measure(session)
        except WorkerError as error:
            print(f"The benchmark failed: {error}", file=sys.stderr)
            return 1
    print(table(session.rows))
    if given.json:
        shown = {**asdict(settings), "folder": "given" if settings.folder else "drawn"}
        write_json(given.json, machine=machine, settings=shown, rows=session.rows)
    wrong = broken(session.rows, session.facts["precision"])
    for sentence in wrong:
        print(f"Wrong result: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


def measure(session: Session) -> dict[str, Any]:
    """Run the requested works and return the description of the machine."""
    works = session.settings.works
    machine = _limits(session)
    _materials(session)
    if {"train_step", "memory"} & set(works):
        work_training.train_step(session)
    for name, measured in (
        ("epoch", work_training.epoch),
        ("train", work_training.train),
        ("store_read", work_training.store_read),
        ("extract", work_features.extract),
    ):
        if name in works:
            say(name)
            measured(session)
    if {"retrain", "grow"} & set(works):
        say("retrain, grow")
        work_features.retrain(session)
    # The peers' load reads the file that this writes.
    if {"model_file", "load"} & set(works):
        say("model_file")
        work_scoring.model_file(session)
    if {"score_one", "score_batch"} & set(works):
        say("score_one, score_batch")
        work_scoring.score(session)
    if "load" in works:
        say("load")
        work_scoring.load(session)
    return machine


def _limits(session: Session) -> dict[str, Any]:
    """Describe the machine and, if requested, measure its limits."""
    say("machine")
    with session.ours("limits") as worker:
        machine: dict[str, Any] = worker.call("describe")
        session.facts["precision"] = machine["precision"]
        if "limit" not in session.settings.works:
            return machine
        for precision in dict.fromkeys(("float32", machine["precision"])):
            rate = worker.call("matmul", precision=precision)
            session.facts[f"matmul {precision}"] = rate
            session.rows.append(Row(f"limit (matrix product, {precision})", rate, "GFLOP/s"))
        session.facts["copy"] = worker.call("copy")
        session.rows.append(Row("limit (memory copy)", session.facts["copy"], "GB/s"))
    return machine


def _materials(session: Session) -> None:
    """Make the materials that every implementation gets."""
    if set(session.settings.works) <= {"limit"}:
        return
    say("images, features, weights")
    with session.ours("materials") as worker:
        worker.call("images")
        worker.call("features")
        session.facts |= worker.call("weights")
        if SCORING & set(session.settings.works):
            worker.call("detector")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="speed.py", description="csflow and its peers side by side: benchmarks/README.md"
    )
    parser.add_argument("--work", default=",".join(WORKS), help=f"comma-separated, any of: {', '.join(WORKS)}")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=WHERE", help="official=PATH, anomalib=PYTHON"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, under two minutes: checks results, not speed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to this file as well")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--images", dest="folder", metavar="FOLDER", help="images to use, at any depth (default: drawn)"
    )
    parser.add_argument("--backbone", default=Settings.backbone, help="timm name (EfficientNet family)")
    parser.add_argument("--scales", type=int, default=SCALES)
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of our training")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    for name, what in (
        ("size", "side of the largest input in pixels"),
        ("width", "hidden channels of the flow"),
        ("batch", "images of a training step"),
        ("score-batch", "images of score_batch"),
        ("count", "how many images"),
        ("epochs", "of the work train"),
        ("repeats", "measured repeats; the median counts"),
    ):
        parser.add_argument(f"--{name}", type=int, help=what)
    return parser


def _settings(given: argparse.Namespace) -> Settings:
    works = tuple(dict.fromkeys(given.work.split(",")))
    unknown = [work for work in works if work not in WORKS]
    if unknown:
        raise ValueError(f"There is no work {', '.join(unknown)}. Choose from: {', '.join(WORKS)}.")
    fields = {name: value for name, value in vars(given).items() if name in Settings.__annotations__}
    chosen = {name: value for name, value in {**fields, "images": given.count}.items() if value is not None}
    settings = Settings(**{**(QUICK if given.quick else {}), **chosen, "works": works})
    if settings.batch > settings.images:
        raise ValueError(f"A batch of {settings.batch} needs as many images, got --count {settings.images}.")
    return settings


def _peer(text: str) -> Peer:
    name, _, where = text.partition("=")
    if name == "official" and (Path(where) / "freia_funcs.py").is_file():
        return Peer("official", sys.executable, "official", (where,), whole=True)
    if name == "anomalib" and Path(where).is_file():
        return Peer("anomalib (our trunk)", where, "anomalib")
    raise ValueError(
        f"--peer {text}: expected official=CHECKOUT of github.com/marco-rudolph/cs-flow or anomalib=PYTHON."
    )
