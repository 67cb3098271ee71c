"""The command line of ``paper.py``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csflow.config import DataConfig, load_line
from csflow.data.manifest import Manifest
from csflow.errors import ConfigError, CsflowError
from csflow.runs.checkout import materialise
from csflow.system.files import write_atomic
from csflow.system.progress import say
from csflow.system.workspace import Workspace
from published.log import TableRun
from published.protocol import FOLDER, Protocol, RowSpec, load_protocol
from published.runs import gather, measure
from published.table import differences, markdown, row_of, show, what_failed, write_result

RESULTS = Path(__file__).resolve().parent.parent / "results"

Runs = dict[str, dict[int, dict[str, Any]]]


@dataclass(frozen=True)
class Job:
    """A table to measure on one line.

    Attributes:
        protocol: The table.
        name: Of the line.
        data: Location of its images.
        quick: True to show only that everything works.
        workspace: Folder of the store, the models and earlier measurements.
        run: Logs the measurements to MLflow.
    """

    protocol: Protocol
    name: str
    data: DataConfig
    quick: bool
    workspace: Workspace

    run: TableRun

    @property
    def results(self) -> Path:
        """Return the folder of earlier measurements."""
        return self.workspace.root / "paper" / self.name


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table; return 0 unless a row failed."""
    given = _parser().parse_args(arguments)
    if given.json is None and not (given.quick or given.method or given.seeds or given.protocol):
        given.json = RESULTS / f"table{given.table}-{'mvtec' if given.table == 1 else given.line}.json"
    try:
        if given.table == 1:
            from published.mvtec import run_table_1

            return run_table_1(given, _protocol(given), repeatable(given))
        return _run(given, _protocol(given))
    except CsflowError as error:
        print(error, file=sys.stderr)
        return 1


def _protocol(given: argparse.Namespace) -> Protocol:
    """Select the requested rows.

    Raises:
        ConfigError: If there is no such protocol, or no such row in it.
    """
    protocol = load_protocol(Path(given.protocol) if given.protocol else FOLDER / f"table{given.table}.yaml")
    if not given.method:
        return protocol
    known = [row.method for row in protocol.rows]
    unknown = [repr(method) for method in given.method if method not in known]
    if unknown:
        raise ConfigError(f"Table {protocol.table} has no row {', '.join(unknown)}. It has: {', '.join(known)}.")
    return protocol.model_copy(update={"rows": tuple(row for row in protocol.rows if row.method in given.method)})


def _run(given: argparse.Namespace, protocol: Protocol) -> int:
    line = load_line(given.line)
    workspace = Workspace.from_environment()
    run = TableRun(workspace, line.line, f"table {protocol.table}")
    job = Job(protocol, line.line, line.data, given.quick, workspace, run)
    with run.open():
        return _measure(given, job)


def _measure(given: argparse.Namespace, job: Job) -> int:
    """Measure row after row and write the result file after each; then print, draw and log."""
    protocol, run = job.protocol, job.run
    runs: Runs = {}
    rows: list[dict[str, Any]] = []
    for row in protocol.rows:
        try:
            runs[row.method] = run_row(job, row, given.seeds)
            rows.append(row_of(row.method, row.paper, runs[row.method]))
        except Exception as error:  # the other rows are still useful
            say(f"{row.method}: {what_failed(error)}")
            rows.append({"method": row.method, "paper": row.paper, "error": what_failed(error)})
        if given.json:
            _write(given, job, rows, runs)
    measured_on = f"{job.name}, measured here"
    if given.quick:  # the protocol's note does not apply to it
        measured_on += " in a quick run that says nothing about quality"
        protocol = protocol.model_copy(update={"note": ""})
    show(protocol, rows, measured_on=measured_on)
    if given.markdown:
        print(markdown(protocol, rows, measured_on=measured_on))
    figure = given.figure or job.results / f"table{protocol.table}-roc.png"
    if runs:
        write_atomic(figure, _curves(job, runs))
    run.finish([file for file in (given.json, figure) if file and file.exists()], f"{len(rows)} rows")
    return int(any("error" in row for row in rows))


def run_row(job: Job, row: RowSpec, seeds: Sequence[int] | None = None) -> dict[int, dict[str, Any]]:
    """Measure all seeds of a row."""
    found = {}
    for seed in seeds or row.seeds or job.protocol.seeds[: 1 if job.quick else None]:
        line = job.protocol.line(row, seed, name=job.name, data=job.data, quick=job.quick)
        say(f"{row.method}, seed {seed}")
        manifest, _ = materialise(line, job.workspace)
        found[seed] = measure(line, gather(line, manifest, job.workspace), job.workspace, job.results)
        job.run.add(row.method, line, found[seed])
    return found


def _curves(job: Job, runs: Runs) -> bytes:
    """Draw the ROC curves of the first seed of every method (the paper's figure 6) as PNG."""
    from csflow.metrics import roc_curve
    from csflow.reporting.figures import png, roc_comparison

    labels = _labels(job)
    first = {method: next(iter(seeds.values()))["scores"] for method, seeds in runs.items()}
    return png(roc_comparison({method: roc_curve(scores, labels) for method, scores in first.items()}))


def _write(given: argparse.Namespace, job: Job, rows: Sequence[Mapping[str, Any]], runs: Runs) -> None:
    compared: list[dict[str, Any]] = []
    if job.protocol.compare in runs:
        compared = differences(runs, _labels(job), of=str(job.protocol.compare))
    write_result(given.json, job.protocol, rows, command=repeatable(given), line=job.name, differences=compared)


def _labels(job: Job) -> list[bool]:
    line = job.protocol.line(job.protocol.rows[0], 0, name=job.name, data=job.data, quick=job.quick)
    manifest: Manifest = materialise(line, job.workspace)[0].rows(role="test")
    return [bool(label == "defective") for label in manifest.frame["label"]]


def repeatable(given: argparse.Namespace) -> str:
    """Return the command that repeats the measurement, without the paths of this machine."""
    words = ["--table", str(given.table), *(["--data", "MVTEC_ROOT"] if given.table == 1 else ["--line", given.line])]
    words += ["--quick"] if given.quick else []
    words += ["--protocol", Path(given.protocol).name] if given.protocol else []
    words += [word for method in given.method or () for word in ("--method", method)]
    words += ["--seeds", *map(str, given.seeds)] if given.seeds else []
    return f"python benchmarks/paper.py {shlex.join(words)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="paper.py", description="The tables of the CS-Flow paper on images at hand.")
    parser.add_argument("--table", type=int, choices=(1, 2, 3, 4), required=True)
    parser.add_argument("--line", default="mtd", help="line whose images are judged (tables 2 to 4)")
    parser.add_argument("--data", type=Path, help="folder of MVTec AD with one subfolder a class (table 1)")
    parser.add_argument("--protocol", help="YAML of the rows; by default that of the table")
    parser.add_argument("--method", action="append", help="only this row; may be repeated")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the protocol's")
    parser.add_argument("--quick", action="store_true", help="show in minutes that everything works")
    parser.add_argument(
        "--json",
        type=Path,
        help="result file, rewritten after every row; "
        "by default that in benchmarks/results/, if nothing is shortened or left out",
    )
    parser.add_argument("--figure", type=Path, help="PNG of the ROC curves, one a row (tables 2 to 4)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown too")
    return parser
