"""Measure memory, threads and start of a server with one line and with many."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from sidebyside.process import WorkerError
from sidebyside.progress import say

from servers.contenders import Contender
from servers.session import Session, accuracy_of

TIMES_THE_FILES = 5
"""Memory of a line at most, in sizes of its files; version 0.4 needed three times as much at width 256."""


def lines(session: Session) -> None:
    """Measure every width with every number of lines, each after one request to each line."""
    for width in session.settings.widths:
        figures: dict[int, dict[str, dict[str, float]]] = {}
        for number in session.settings.lines:
            figures[number] = {}
            for contender in session.contenders:
                say(f"lines: width {width}, {number} lines, {contender.name}")
                figures[number][contender.name] = _measured(session, contender, width, number)
            _add(session, f"lines ({number}, width {width})", figures[number])
        few, many = min(figures), max(figures)
        if few < many:
            each = {
                name: (figures[many][name]["pss"] - figures[few][name]["pss"]) / (many - few)
                for name in figures[few]
                if figures[many][name]
            }
            session.add(f"lines (each further one, width {width}): memory", "MB", each)


def _measured(session: Session, contender: Contender, width: int, number: int) -> dict[str, float]:
    """Return the figures of one server, none if the machine has too little memory or disk for it."""
    model = session.model(contender, width)
    size = sum(file.stat().st_size for file in (model.rglob("*") if model.is_dir() else [model]) if file.is_file())
    if size * number * TIMES_THE_FILES > psutil.virtual_memory().available or size * number > _free(session.folder):
        say(f"left out: {number} lines need up to {size * number * TIMES_THE_FILES / 1e9:.0f} GB of memory")
        return {}
    copies = session.folder / "copies"
    copies.mkdir()
    try:
        models = [(f"line-{n}", contender.copy(model, copies / f"line-{n}{model.suffix}")) for n in range(number)]
        with contender.serve(models, session.log(contender)) as running, session.load(width) as load:
            worst = 0.0
            for name, _ in models:
                result = load.call("closed", port=running.port, protocol="v1", clients=1, seconds=0, line=name)
                if result["errors"]:
                    raise WorkerError(f"{contender.name}, {name}: {result['errors']}")
                worst = max(worst, result["worst"])
            usage: dict[str, Any] = asdict(running.usage())
            megabytes = {key: usage[key] / 1e6 for key in ("pss", "rss")}
            return {**megabytes, "threads": usage["threads"], "start": running.start_seconds, "worst": worst}
    finally:
        shutil.rmtree(copies)


def _add(session: Session, work: str, figures: dict[str, dict[str, float]]) -> None:
    measured = {name: values for name, values in figures.items() if values}
    if "ours" not in measured:
        return
    accuracy = accuracy_of({name: values["worst"] for name, values in measured.items()})
    for key, what, unit in (
        ("pss", "memory, shared pages in parts", "MB"),
        ("rss", "memory, shared pages in full", "MB"),
        ("start", "start", "s"),
        ("threads", "threads", "threads"),
    ):
        values = {name: figures[key] for name, figures in measured.items()}
        session.add(f"{work}: {what}", unit, values, accuracy if key == "pss" else None)


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free
