"""The command line: read the settings, run the works in order, print the table, write the JSON file."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sidebyside.bounds import SCORES, beyond
from sidebyside.machine import describe
from sidebyside.process import WorkerError
from sidebyside.progress import say
from sidebyside.rows import table, write_json

from servers import materials
from servers.contenders import Contender, older, ours, plain
from servers.quota import one_cpu
from servers.session import Session
from servers.settings import PROTOCOLS, QUICK, WORKS, Settings
from servers.work_clients import clients
from servers.work_departed import departed
from servers.work_hostile import hostile
from servers.work_lines import lines
from servers.work_quota import quota
from servers.work_soak import soak
from servers.work_starvation import starvation

PACKAGES = ("onnxruntime", "kserve", "fastapi", "uvicorn", "grpcio", "numpy", "pillow")

LIMITS = {"scores": SCORES, "spread": 1e-5}
"""Errors above which a fast server does not count: against torch, and between two answers about the same image."""

MEASURES: dict[str, Callable[[Session], None]] = {
    "clients": clients,
    "starvation": starvation,
    "lines": lines,
    "hostile": hostile,
    "departed": departed,
    "soak": soak,
    "quota": quota,
}

DESCRIPTION = """
csflow's server beside that of version 0.4 and a plain one (FastAPI and ONNX Runtime in 30 lines), by turns in one run:
benchmarks/README.md says what each work is.

  python benchmarks/serving.py --quick
  git worktree add ../csflow-0.4 beb3801
  python benchmarks/serving.py --peer 0.4=../csflow-0.4 --json result.json
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return 0 if all answers are right, 1 if one is wrong or a server failed, 2 for wrong usage."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        settings = _settings(given)
        contenders = [ours(shlex.split(given.serve)), *(_peer(text) for text in given.peer)]
        contenders += [] if given.without_plain else [plain()]
        with tempfile.TemporaryDirectory(prefix="csflow-serving-", dir=given.folder) as folder:
            session = Session(settings, Path(folder), contenders)
            settings.save(session.folder / "settings.json")
            materials.images(session.folder, settings)
            with session:
                machine = _measure(session)
    except ValueError as error:
        parser.error(str(error))
    except WorkerError as error:
        print(f"The benchmark failed: {error}", file=sys.stderr)
        return 1
    print(table(session.rows))
    if wrong := beyond(session.rows, LIMITS):
        print("\n".join(f"Wrong result: {sentence}" for sentence in wrong), file=sys.stderr)
        return 1  # and no file, which somebody might quote
    if given.json:
        shown = {**asdict(settings), "folder": "given" if settings.folder else "drawn", "serve": given.serve}
        write_json(given.json, machine=machine, settings=shown, rows=session.rows)
    return 0


def _measure(session: Session) -> dict[str, Any]:
    """Run the requested works and return the description of the machine."""
    with one_cpu() as (how, _):
        machine = {**describe(PACKAGES), "one_cpu": how}
    say("detectors and correct scores")
    materials.scores(session.folder, session.settings.width, session.settings)
    for work in session.settings.works:
        say(work)
        MEASURES[work](session)
    return machine


def _peer(text: str) -> Contender:
    name, separator, where = text.partition("=")
    if not (name and separator and where):
        raise ValueError(f"--peer {text}: expected NAME=CHECKOUT of an older csflow, such as 0.4=../csflow-0.4.")
    return older(name, Path(where))


def _settings(given: argparse.Namespace) -> Settings:
    for option, known in (("work", WORKS), ("protocol", PROTOCOLS)):
        unknown = [name for name in getattr(given, option).split(",") if name not in known]
        if unknown:
            raise ValueError(f"There is no {option} {', '.join(unknown)}. Choose from: {', '.join(known)}.")
    named = {**vars(given), "images": given.count, "folder": given.images}
    chosen = {name: value for name, value in named.items() if name in Settings.__annotations__ and value is not None}
    works, protocols = (tuple(dict.fromkeys(text.split(","))) for text in (given.work, given.protocol))
    return replace(QUICK if given.quick else Settings(), **{**chosen, "works": works, "protocols": protocols})


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="serving.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--work", default=",".join(WORKS), help="comma-separated (default: %(default)s)")
    add("--protocol", default=",".join(PROTOCOLS), help="of the work clients, comma-separated (default: %(default)s)")
    add("--peer", action="append", default=[], metavar="NAME=CHECKOUT", help="an older csflow, such as 0.4=PATH")
    add("--without-plain", action="store_true", help="leave the plain server out")
    add("--serve", default="", metavar="OPTIONS", help="further options of our server, in one argument")
    add("--quick", action="store_true", help="tiny sizes, a minute and a half: checks answers, not speed")
    add("--json", type=Path, metavar="FILE", help="write the result to this file as well, if all answers are right")
    add("--images", metavar="FOLDER", help="images to send, at any depth (default: drawn PNG and JPEG)")
    add("--count", type=int, help=f"how many images (default: {Settings.images})")
    add("--clients", type=_numbers, help="numbers of clients, such as 1,8,32")
    add("--lines", type=_numbers, help="numbers of lines in one server, such as 1,8,30")
    add("--widths", type=_numbers, help="widths of the flow in the work lines")
    add("--folder", type=Path, help="folder for detectors and their copies (30 of width 256 take 3 GB)")
    for name, kind, what in (
        ("size", int, "side of the detector's largest input in pixels"),
        ("width", int, "hidden channels of the flow, in all works but lines"),
        ("seconds", float, "of one measurement"),
        ("repeats", int, "measured repeats; the median counts"),
        ("minutes", float, "of the work soak"),
        ("guard", int, "megabytes above which the work hostile kills a server"),
        ("seed", int, "of weights and drawn images"),
    ):
        add(f"--{name}", type=kind, help=f"{what} (default: {getattr(Settings, name)})")
    return parser
