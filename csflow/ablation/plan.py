"""Plan an ablation: which variants to measure, under which keys, and in which MLflow run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from csflow.ablation.groups import variants
from csflow.ablation.measure import Bench
from csflow.ablation.request import Keys, Request, Variant, changed
from csflow.adapters.mlflow.runs import ablations_of, flat_params
from csflow.config import LineConfig, Section
from csflow.errors import DataError, NotRegisteredError, RegistryError
from csflow.runs.services import Services
from csflow.system.files import sha256_json, write_json
from csflow.system.progress import say
from csflow.system.workspace import Workspace

PLAN = "plan.json"
"""The plan's file in the folder of an ablation."""


class PlannedVariant(Section):
    """A variant of an ablation with the key of its row."""

    variant: Variant
    key: str


class AblationPlan(Section):
    """The variants of an ablation and its MLflow run.

    Attributes:
        line: The line's own configuration, from which the variants differ.
        entries: Every variant with every seed.
        run_id: The MLflow run.
        planned: When the ablation was last asked for, ISO 8601 in UTC.
        overrides: Keys set in every variant.
    """

    line: LineConfig
    entries: tuple[PlannedVariant, ...]
    run_id: str
    planned: str
    overrides: Keys = Field(default_factory=dict)

    @property
    def base(self) -> LineConfig:
        """Return the configuration in which every variant changes one thing."""
        return changed(self.line, self.overrides)

    @property
    def keys(self) -> list[str]:
        """Return the keys of the rows to measure, each once."""
        return list(dict.fromkeys(entry.key for entry in self.entries))

    def variant(self, key: str) -> Variant:
        """Return the first variant that has a row's key.

        Raises:
            DataError: If the ablation has no such row.
        """
        found = next((entry.variant for entry in self.entries if entry.key == key), None)
        if found is None:
            raise DataError(f"The ablation of {self.line.line} has no row {key}. Plan it again.")
        return found

    def names(self, key: str) -> str:
        """Join the names of all variants that have a row's key."""
        same = (entry.variant for entry in self.entries if entry.key == key)
        return "; ".join(dict.fromkeys(f"{each.group}: {each.name}, {each.line.line}" for each in same))


def make_plan(request: Request, services: Services, bench: Bench | None = None) -> Path:
    """Decide what to measure and open the MLflow run, or reuse the run of an equal ablation.

    Args:
        request: The variants to measure.
        services: The outside systems.
        bench: The data that the variants share; a new one by default.

    Returns:
        The folder of the ablation, with its plan.

    Raises:
        ConfigError: If the request cannot be planned.
        DataError: If the line's data is not available.
    """
    bench = bench or Bench(services)
    entries = [PlannedVariant(variant=variant, key=bench.key(variant)) for variant in _pinned(variants(request), bench)]
    identity = [[each.variant.group, each.variant.name, each.key] for each in entries]
    folder = services.workspace.ablations / request.line.line / sha256_json(identity)[:16]
    plan = AblationPlan(
        line=request.line,
        entries=tuple(entries),
        run_id=_parent_run(folder, request, services),
        planned=datetime.now(UTC).isoformat(timespec="microseconds"),
        overrides=request.overrides,
    )
    write_json(folder / PLAN, plan.model_dump(mode="json"))
    say(f"ablate: {len(plan.keys)} variants of {request.line.line} to measure; tables and rows are written to {folder}")
    return folder


def read_plan(folder: Path) -> AblationPlan:
    """Read the plan in the folder of an ablation.

    Raises:
        DataError: If there is none or it is damaged.
    """
    file = folder / PLAN
    try:
        return AblationPlan.model_validate_json(file.read_text())
    except (OSError, ValidationError) as error:
        raise DataError(f"{file} is no plan of an ablation: {error}. Plan it again: csflow ablate LINE.") from error


def newest_ablation(line: str, workspace: Workspace) -> Path:
    """Find the ablation of a line that was asked for last.

    Returns:
        Its folder.

    Raises:
        DataError: If the line was never ablated in this workspace.
    """
    plans = sorted((workspace.ablations / line).glob(f"*/{PLAN}"))
    if not plans:
        raise DataError(f"Line {line} was never ablated in {workspace.root}. Run: csflow ablate {line}")
    return max(plans, key=_planned).parent


def _planned(file: Path) -> str:
    """Return the moment at which an ablation was asked for; for a damaged plan, that of its file."""
    try:
        return str(json.loads(file.read_text())["planned"])
    except (OSError, ValueError, KeyError, TypeError):
        return datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="microseconds")


def _pinned(planned: Sequence[Variant], bench: Bench) -> Iterator[Variant]:
    """Pin the data to the current revision, so that a variant measured hours later sees the same images."""

    def pin(line: LineConfig) -> LineConfig:
        return line.model_copy(update={"data": line.data.model_copy(update={"rev": bench.revision(line)})})

    for variant in planned:
        joined = tuple(pin(line) for line in variant.joined)
        yield variant.model_copy(update={"line": pin(variant.line), "joined": joined})


def _parent_run(folder: Path, request: Request, services: Services) -> str:
    try:
        known = read_plan(folder).run_id
        services.tracker.read_run(known)
        return known
    except (DataError, NotRegisteredError, RegistryError):
        pass
    asked = request.model_dump(mode="json", exclude={"line", "joined"})
    return services.tracker.start_run(
        ablations_of(request.line.line),
        params=flat_params(request.line),
        tags={"ablation": folder.name, **{name: json.dumps(value) for name, value in asked.items()}},
        name=f"ablation {folder.name[:8]}",
    )
