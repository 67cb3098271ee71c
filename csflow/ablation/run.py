"""Run an ablation: plan it, measure its variants one by one, collect tables and plots.

Every row is stored in the workspace as soon as it is measured, under the digest of everything it depends on: an
interrupted ablation resumes where it stopped, and equal variants are measured once. While a variant is being measured,
its row says so. If that kills the process, because memory runs out, the row remains and the variant is measured last
the next time. In MLflow an ablation is one run, with one nested run per variant.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csflow.ablation.collect import collect, write_tables
from csflow.ablation.measure import Bench
from csflow.ablation.plan import AblationPlan, make_plan, read_plan
from csflow.ablation.request import Request, differences
from csflow.ablation.rows import UNFINISHED, AblationRow, failed_row, row_file, store_row, stored_row
from csflow.adapters.mlflow.runs import ablations_of, flat_params
from csflow.errors import CsflowError
from csflow.runs.ownership import owner_tags
from csflow.runs.services import Services
from csflow.system.locks import held
from csflow.system.processes import raised_on_sigterm
from csflow.system.progress import say


def run_ablation(request: Request, services: Services, *, retime: bool = False) -> Path:
    """Plan an ablation, measure every variant that has no row yet, write tables and plots.

    Args:
        request: The variants to measure.
        services: The outside systems.
        retime: If True, time every variant again, even if a trustworthy time is known.

    Returns:
        The folder of the ablation.

    Raises:
        ConfigError: If the request cannot be planned.
        DataError: If the line's data is not available.
    """
    bench = Bench(services, retime=retime)
    folder = make_plan(request, services, bench)
    plan = read_plan(folder)
    with services.tracker.step(plan.run_id, "ablate"):
        for key in measuring_order(plan, services):
            run_variant(folder, key, services, bench)
    return collect(folder, services)


def measuring_order(plan: AblationPlan, services: Services) -> list[str]:
    """Sort the rows of a plan in the order in which to measure them.

    A variant that kills the process again then keeps no other one from being measured. Of several such variants the
    one tried longest ago comes first.

    Returns:
        The keys: first rows that are missing, then those that have figures, then those that failed, and last those
        whose measurement did not finish.
    """

    def urgency(key: str) -> tuple[int, float]:
        row = stored_row(services.workspace, key)
        if row is not None and row.is_unfinished:
            return 3, row_file(services.workspace, key).stat().st_mtime
        return (0 if row is None else 2 if row.error else 1), 0.0

    return sorted(plan.keys, key=urgency)


def run_variant(folder: Path, key: str, services: Services, bench: Bench | None = None) -> AblationRow:
    """Measure a variant unless its row has figures already; a failure becomes a row as well.

    Only one variant is measured at a time on a machine, since two would slow each other down. A row that was timed on
    another machine, or while other processes kept this one busy, is timed again.

    Args:
        folder: The folder of the ablation.
        key: The key of the variant's row.
        services: The outside systems.
        bench: The data that the variants share; a new one by default.

    Returns:
        The variant's row.

    Raises:
        DataError: If the ablation has no such row.
    """
    plan, bench = read_plan(folder), bench or Bench(services)
    variant, names = plan.variant(key), plan.names(key)
    with held(services.workspace.ablations / ".measuring", "the measuring of variants"):
        row = stored_row(services.workspace, key)
        if row is not None and not row.error:
            row = _found(services, plan, row, bench)
            say(f"ablate: found {names} ({row.headline})")
        else:
            say(f"ablate: measuring {names}, seed {variant.line.training.seed}")
            if row is not None and row.is_unfinished:
                collect(folder, services)  # it may kill this process as well
            with _marked_unfinished(folder, key, services):
                row = _measured(services, plan, key, bench)
            store_row(services.workspace, row)
            say(f"ablate: {names}: {row.headline}")
    write_tables(folder, services.workspace)
    return row


@contextmanager
def _marked_unfinished(folder: Path, key: str, services: Services) -> Iterator[None]:
    """Mark the row as unfinished, so that the mark remains if the process is killed.

    If a person stops the measurement, the former row is restored and the ablation resumes with this variant. For that,
    SIGTERM has to become an exception; only a training handles the signal itself.
    """
    before = stored_row(services.workspace, key)
    store_row(services.workspace, failed_row(read_plan(folder).variant(key), key, UNFINISHED))
    write_tables(folder, services.workspace)
    try:
        with raised_on_sigterm():
            yield
    except BaseException:
        if before is None:
            row_file(services.workspace, key).unlink()
        else:
            store_row(services.workspace, before)
        write_tables(folder, services.workspace)
        raise


def _measured(services: Services, plan: AblationPlan, key: str, bench: Bench) -> AblationRow:
    """Measure a variant; its errors go into the row, but what ends the process is raised."""
    variant = plan.variant(key)
    try:
        run_id = _nested_run(services, plan, key)
        with services.tracker.step(run_id, "variant"):
            with services.tracker.epoch_log(run_id) as publish:
                row = bench.measure(variant, key, publish)
            _log_row(services, run_id, row)
        return row
    except Exception as error:
        return failed_row(variant, key, _message(error))


def _found(services: Services, plan: AblationPlan, row: AblationRow, bench: Bench) -> AblationRow:
    """Time a stored row again if need be and log it in this ablation; if either fails, the row stays as it was."""
    try:
        timed = bench.timed_here(plan.variant(row.key), row)
        if timed != row:
            row = timed
            store_row(services.workspace, row)
        run_id = _nested_run(services, plan, row.key)
        known = services.tracker.read_run(run_id)
        if known.status != "FINISHED" or (row.timing and known.metrics.get("milliseconds") != row.timing.median_ms):
            _log_row(services, run_id, row)
    except Exception as error:
        say(f"ablate: {plan.names(row.key)} keeps the row that was found: {_message(error)}")
    return row


def _nested_run(services: Services, plan: AblationPlan, key: str) -> str:
    """Start the MLflow run of a variant in this ablation, or find the one that was interrupted."""
    for run in services.tracker.nested_runs(plan.run_id):
        if run.tags.get("row") == key:
            services.tracker.set_tags(run.run_id, owner_tags())
            return run.run_id
    variant = plan.variant(key)
    changes = json.dumps(differences(variant.line, plan.line))
    return services.tracker.start_run(
        ablations_of(plan.line.line),
        params=flat_params(variant.line),
        tags={"row": key, "variant": plan.names(key), "changed": changes, **owner_tags()},
        name=f"{variant.group}: {variant.name}, {variant.line.line}, seed {variant.line.training.seed}",
        parent=plan.run_id,
    )


def _log_row(services: Services, run_id: str, row: AblationRow) -> None:
    values: dict[str, float | None] = {"parameters": row.parameters, "training_seconds": row.training_seconds}
    values |= {name: found.value for name, found in row.metrics.items()}
    if row.timing is not None:
        values |= {"milliseconds": row.timing.median_ms, "milliseconds_p95": row.timing.p95_ms}
    values |= {f"images_{name}": float(count) for name, count in row.images.items()}
    services.tracker.log_metrics(run_id, values)
    services.tracker.finish(run_id, "measured")


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, CsflowError) else f"{type(error).__name__}: {error}"
