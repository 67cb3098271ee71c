"""Run an ablation: plan it, measure its variants one by one, lay them side by side.

What is finished lies in the workspace at once: a row is a file under the digest of all it depends on, so an
interrupted ablation goes on where it stopped, and equal variants are measured once. While a variant is measured its
row says so: one that ends the process, because memory is short, leaves that row behind and goes last the next time. In
MLflow an ablation is one run, and every variant one nested in it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from csflow.ablation.groups import variants
from csflow.ablation.measure import Bench
from csflow.ablation.request import Keys, Request, Variant, changed, differences, parse_request
from csflow.ablation.tradeoff import ENDED, Entry, Row, Summary, summarise
from csflow.config import LineConfig, Section
from csflow.errors import CsflowError, DataError, NotRegisteredError, RegistryError
from csflow.runs.context import step
from csflow.system.files import exclusive, sha256_json, write_atomic, write_json
from csflow.system.processes import raised_on_sigterm
from csflow.system.progress import say
from csflow.system.workspace import Workspace

PLAN, TABLE, PLOT, ROC, ROWS = "plan.json", "table", "pareto.png", "roc-", "rows"
"""What lies in the folder of an ablation; the table as CSV, Markdown and HTML, ROC curves as a picture a group."""


class Plan(Section):
    """What an ablation consists of.

    Attributes:
        line: The line's own configuration, which the variants differ from.
        entries: Every variant with every seed.
        run_id: The MLflow run.
        planned: When it was asked for last, ISO 8601 in UTC.
        overrides: Keys set in every variant.
    """

    line: LineConfig
    entries: tuple[Entry, ...]
    run_id: str
    planned: str
    overrides: Keys = Field(default_factory=dict)

    @property
    def base(self) -> LineConfig:
        """What every variant changes one thing of."""
        return changed(self.line, self.overrides)

    @property
    def keys(self) -> list[str]:
        """Rows to measure, each once."""
        return list(dict.fromkeys(entry.key for entry in self.entries))

    def variant(self, key: str) -> Variant:
        """The first variant that a row stands for.

        Raises:
            DataError: If the ablation has no such row.
        """
        found = next((entry.variant for entry in self.entries if entry.key == key), None)
        if found is None:
            raise DataError(f"The ablation of {self.line.line} has no row {key}. Plan it again.")
        return found

    def names(self, key: str) -> str:
        """Every variant a row stands for."""
        same = (entry.variant for entry in self.entries if entry.key == key)
        return "; ".join(dict.fromkeys(f"{each.group}: {each.name}, {each.line.line}" for each in same))


def ablate(request: Request, workspace: Workspace, *, retime: bool = False) -> Path:
    """Plan an ablation, measure every variant that has no row yet, write tables and plot.

    Args:
        request: What to try.
        workspace: Where things are.
        retime: Whether to time every variant again, even where there is a time that can be trusted.

    Returns:
        The folder of the ablation.

    Raises:
        ConfigError: If the request cannot be planned.
        DataError: If the line's data cannot be had.
    """
    from csflow.adapters.mlflow import tracking

    bench = Bench(workspace, retime=retime)
    folder = plan(request, workspace, bench)
    planned = read_plan(folder)
    with tracking.step(workspace, planned.run_id, "ablate"):
        for key in in_order(planned, workspace):
            run_variant(folder, key, workspace, bench)
    return collect(folder, workspace)


def plan(request: Request, workspace: Workspace, bench: Bench | None = None) -> Path:
    """Decide what is to be measured and open the parent run, or take up that of an equal ablation.

    Returns:
        The folder of the ablation, with its plan.

    Raises:
        ConfigError: If the request cannot be planned.
        DataError: If the line's data cannot be had.
    """
    bench = bench or Bench(workspace)
    entries = [Entry(variant=variant, key=bench.key(variant)) for variant in _pinned(variants(request), bench)]
    identity = [[each.variant.group, each.variant.name, each.key] for each in entries]
    folder = workspace.ablations / request.line.line / sha256_json(identity)[:16]
    run_id = _parent_run(folder, request, workspace)
    planned = datetime.now(UTC).isoformat(timespec="microseconds")
    made = Plan(line=request.line, entries=tuple(entries), run_id=run_id, planned=planned, overrides=request.overrides)
    write_json(folder / PLAN, made.model_dump(mode="json"))
    rows = len({entry.key for entry in entries})
    say(f"ablate: {rows} variants of {request.line.line} to measure; tables and rows go to {folder}")
    return folder


def in_order(planned: Plan, workspace: Workspace) -> list[str]:
    """Rows in the order to measure them: new ones, those found, those that failed, those that ended the process.

    One that ends the process again then takes no other one along; of several the one tried longest ago comes first.
    """

    def urgency(key: str) -> tuple[int, float]:
        row = _stored_row(workspace, key)
        if row is not None and row.error == ENDED:
            return 3, _row_file(workspace, key).stat().st_mtime
        return (0 if row is None else 2 if row.error else 1), 0.0

    return sorted(planned.keys, key=urgency)


def run_variant(folder: Path, key: str, workspace: Workspace, bench: Bench | None = None) -> Row:
    """Measure a variant, unless its row is there already; a failure becomes a row too.

    One at a time on a machine: two would falsify each other's milliseconds. A row that was timed elsewhere, or while
    others kept this machine busy, is timed again.
    """
    planned, bench = read_plan(folder), bench or Bench(workspace)
    variant, names = planned.variant(key), planned.names(key)
    with exclusive(workspace.ablations / ".measuring"):
        row = _stored_row(workspace, key)
        if row is not None and not row.error:
            row = _found(workspace, planned, row, bench)
            say(f"ablate: found {names} ({_figure(row)})")
        else:
            say(f"ablate: measuring {names}, seed {variant.line.training.seed}")
            if row is not None and row.error == ENDED:
                collect(folder, workspace)  # it may end this process as well
            with _marked(folder, key, workspace):
                row = _measured(workspace, planned, key, bench)
            write_json(_row_file(workspace, key), row.model_dump(mode="json"))
            say(f"ablate: {names}: {_figure(row)}")
    write_tables(folder, workspace)
    return row


def collect(folder: Path, workspace: Workspace) -> Path:
    """Write tables, plot and copies of the rows, and attach them to the parent run.

    Returns:
        The folder.
    """
    from csflow.ablation.figure import roc_figures, tradeoff_figure
    from csflow.adapters.mlflow import tracking
    from csflow.reporting.figures import png

    planned, summaries = read(folder, workspace)
    ours = _of_line(summaries, planned.line.line)
    write_atomic(folder / PLOT, png(tradeoff_figure(ours)))
    curves = {f"{ROC}{group}.png": png(figure) for group, figure in roc_figures(ours).items()}
    for name, picture in curves.items():
        write_atomic(folder / name, picture)
    write_tables(folder, workspace)  # now with the pictures in the page
    for name in (*(f"{TABLE}.{kind}" for kind in ("csv", "md", "html")), PLOT, *curves, PLAN, ROWS):
        tracking.log_artifact(workspace, planned.run_id, folder / name)
    failed = sum(1 for summary in summaries if summary.errors)
    tracking.log_metrics(workspace, planned.run_id, {"variants": float(len(summaries)), "failed": float(failed)})
    tracking.finish(workspace, planned.run_id, f"{len(summaries) - failed} of {len(summaries)} variants measured")
    say(f"ablate: {len(summaries)} variants, {failed} of them broken; {folder / f'{TABLE}.html'}")
    return folder


def plan_step(request_json: str) -> tuple[str, list[str]]:
    """`plan` as a step of a pipeline.

    Returns:
        The folder of the ablation, and the keys of the rows in the order to measure them.
    """
    with step("plan_ablation"):
        workspace = Workspace.from_environment()
        folder = plan(parse_request(json.loads(request_json)), workspace)
        return str(folder), in_order(read_plan(folder), workspace)


def variant_step(folder: str, key: str) -> str:
    """`run_variant` as a step of a pipeline; returns the key."""
    with step("ablate_variant"):
        return run_variant(Path(folder), key, Workspace.from_environment()).key


def collect_step(folder: str, keys: Sequence[str], *, page_out: str | Path) -> str:
    """`collect` as a step of a pipeline, which also shows the page; returns the folder.

    Raises:
        DataError: If a variant was not measured.
    """
    with step("collect_ablation"):
        missing = set(read_plan(Path(folder)).keys) - set(keys)
        if missing:
            raise DataError(f"{len(missing)} variants of {folder} were not measured. Run the ablation again.")
        written = collect(Path(folder), Workspace.from_environment())
        shutil.copyfile(written / f"{TABLE}.html", page_out)
        return str(written)


def write_tables(folder: Path, workspace: Workspace) -> tuple[Plan, list[Summary]]:
    """Write the tables of what is finished so far, and a copy of every row they show."""
    from csflow.ablation.table import to_csv, to_html, to_markdown

    planned, summaries = read(folder, workspace)
    rows = {f"{row.key}.json": row for summary in summaries for row in summary.rows}
    for name, row in rows.items():
        write_json(folder / ROWS / name, row.model_dump(mode="json"))
    for file in (folder / ROWS).glob("*.json"):
        if file.name not in rows:  # of a measurement that was interrupted
            file.unlink()
    plot = folder / PLOT
    curves = {file.stem.removeprefix(ROC): file.read_bytes() for file in sorted(folder.glob(f"{ROC}*.png"))}
    title = f"Ablation of {planned.line.line}"
    write_atomic(folder / f"{TABLE}.csv", to_csv(summaries))
    write_atomic(folder / f"{TABLE}.md", to_markdown(title, summaries))
    page = to_html(title, summaries, plot.read_bytes() if plot.exists() else None, curves)
    write_atomic(folder / f"{TABLE}.html", page)
    return planned, summaries


def read(folder: Path, workspace: Workspace) -> tuple[Plan, list[Summary]]:
    """The plan of an ablation and what it came to so far."""
    planned = read_plan(folder)
    rows = {key: row for key in planned.keys if (row := _stored_row(workspace, key)) is not None}
    return planned, summarise(planned.entries, rows)


def read_plan(folder: Path) -> Plan:
    """The plan in a folder.

    Raises:
        DataError: If there is none or it is damaged.
    """
    file = folder / PLAN
    try:
        return Plan.model_validate_json(file.read_text())
    except (OSError, ValidationError) as error:
        raise DataError(f"{file} is no plan of an ablation: {error}. Plan it again: csflow ablate LINE.") from error


def newest(line: str, workspace: Workspace) -> Path:
    """Folder of the ablation of a line that was asked for last.

    Raises:
        DataError: If the line was never ablated here.
    """
    plans = sorted((workspace.ablations / line).glob(f"*/{PLAN}"))
    if not plans:
        raise DataError(f"Line {line} was never ablated in {workspace.root}. Run: csflow ablate {line}")
    return max(plans, key=lambda file: json.loads(file.read_text())["planned"]).parent


def _pinned(planned: Sequence[Variant], bench: Bench) -> Iterator[Variant]:
    """Variants with the revisions there are now: one that runs hours later sees the same images."""

    def pin(line: LineConfig) -> LineConfig:
        return line.model_copy(update={"data": line.data.model_copy(update={"rev": bench.revision(line)})})

    for variant in planned:
        joined = tuple(pin(line) for line in variant.joined)
        yield variant.model_copy(update={"line": pin(variant.line), "joined": joined})


def _parent_run(folder: Path, request: Request, workspace: Workspace) -> str:
    from csflow.adapters.mlflow import tracking

    try:
        known = read_plan(folder).run_id
        tracking.read_run(workspace, known)
        return known
    except (DataError, NotRegisteredError, RegistryError):
        pass
    asked = request.model_dump(mode="json", exclude={"line", "joined"})
    return tracking.start_run(
        workspace,
        tracking.ablations_of(request.line.line),
        params=tracking.flat_params(request.line),
        tags={"ablation": folder.name, **{name: json.dumps(value) for name, value in asked.items()}},
        name=f"ablation {folder.name[:8]}",
    )


@contextmanager
def _marked(folder: Path, key: str, workspace: Workspace) -> Iterator[None]:
    """Let the row say that it is being measured, so that it says so still if the process is killed.

    A person who stops the measurement gets the former row back, and the ablation goes on with this one. Outside of a
    training, which heeds SIGTERM itself, the signal has to become an exception for that.
    """
    before, file = _stored_row(workspace, key), _row_file(workspace, key)
    write_json(file, _broken(read_plan(folder).variant(key), key, ENDED).model_dump(mode="json"))
    write_tables(folder, workspace)
    try:
        with raised_on_sigterm():
            yield
    except BaseException:
        if before is None:
            file.unlink()
        else:
            write_json(file, before.model_dump(mode="json"))
        write_tables(folder, workspace)
        raise


def _measured(workspace: Workspace, planned: Plan, key: str, bench: Bench) -> Row:
    """The row of a variant, with its error if it has one; what ends the process is no error of a variant."""
    from csflow.adapters.mlflow import tracking

    variant = planned.variant(key)
    try:
        run_id = _nested_run(workspace, planned, key)
        with tracking.step(workspace, run_id, "variant"):
            with tracking.epoch_log(workspace, run_id) as publish:
                row = bench.measure(variant, key, publish)
            _log_row(workspace, run_id, row)
        return row
    except Exception as error:
        return _broken(variant, key, _message(error))


def _broken(variant: Variant, key: str, error: str) -> Row:
    line = variant.line
    return Row(key=key, line=line.line, seed=line.training.seed, config=line.model_dump(mode="json"), error=error)


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, CsflowError) else f"{type(error).__name__}: {error}"


def _nested_run(workspace: Workspace, planned: Plan, key: str) -> str:
    """The run of a variant in this ablation; an interrupted one is taken up again."""
    from csflow.adapters.mlflow import tracking

    for run in tracking.nested_runs(workspace, planned.run_id):
        if run.tags.get("row") == key:
            return run.run_id
    variant = planned.variant(key)
    changes = json.dumps(differences(variant.line, planned.line))
    return tracking.start_run(
        workspace,
        tracking.ablations_of(planned.line.line),
        params=tracking.flat_params(variant.line),
        tags={
            "row": key,
            "variant": planned.names(key),
            "changed": changes,
        },
        name=f"{variant.group}: {variant.name}, {variant.line.line}, seed {variant.line.training.seed}",
        parent=planned.run_id,
    )


def _found(workspace: Workspace, planned: Plan, row: Row, bench: Bench) -> Row:
    """A row that is there, timed anew if need be and logged in this ablation too; trouble with either leaves it."""
    from csflow.adapters.mlflow import tracking

    try:
        timed = bench.timed_here(planned.variant(row.key), row)
        if timed != row:
            row = timed
            write_json(_row_file(workspace, row.key), row.model_dump(mode="json"))
        run_id = _nested_run(workspace, planned, row.key)
        known = tracking.read_run(workspace, run_id)
        if known.status != "FINISHED" or (row.timing and known.metrics.get("milliseconds") != row.timing.median_ms):
            _log_row(workspace, run_id, row)
    except Exception as error:
        say(f"ablate: {planned.names(row.key)} stays as it was found: {_message(error)}")
    return row


def _log_row(workspace: Workspace, run_id: str, row: Row) -> None:
    from csflow.adapters.mlflow import tracking

    values: dict[str, float | None] = {"parameters": row.parameters, "training_seconds": row.training_seconds}
    for name, (value, low, high) in row.metrics.items():
        values |= {name: value, f"{name}_low": low, f"{name}_high": high}
    if row.timing is not None:
        values |= {"milliseconds": row.timing.median_ms, "milliseconds_p95": row.timing.p95_ms}
    values |= {f"images_{name}": float(count) for name, count in row.images.items()}
    tracking.log_metrics(workspace, run_id, values)
    tracking.finish(workspace, run_id, "measured")


def _row_file(workspace: Workspace, key: str) -> Path:
    return workspace.ablations / ".rows" / f"{key}.json"


def _stored_row(workspace: Workspace, key: str) -> Row | None:
    """A finished row; one that cannot be read is measured again."""
    try:
        return Row.model_validate_json(_row_file(workspace, key).read_text())
    except (OSError, ValidationError):
        return None


def _of_line(summaries: Sequence[Summary], line: str) -> list[Summary]:
    return [summary for summary in summaries if summary.variant.line.line == line]


def _figure(row: Row) -> str:
    if row.error:
        return f"failed: {row.error}"
    shown = {"image AUROC": "image_auroc", "against synthetic defects": "synthetic_auroc"}
    values = [f"{name} {100 * row.metrics[key].value:.2f} %" for name, key in shown.items() if key in row.metrics]
    return ", ".join([*values, *([f"{row.timing.median_ms:.1f} ms"] if row.timing else [])])
