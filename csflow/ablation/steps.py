"""Run the steps of the ablation pipeline, which its KFP components call."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from csflow.ablation.collect import TABLE, collect
from csflow.ablation.plan import make_plan, read_plan
from csflow.ablation.request import parse_request
from csflow.ablation.run import measuring_order, run_variant
from csflow.errors import DataError
from csflow.runs.context import step
from csflow.runs.services import Services


def plan_step(services: Services, request_json: str) -> tuple[str, list[str]]:
    """Plan an ablation.

    Args:
        services: The outside systems.
        request_json: The variants to measure, as JSON of :class:`csflow.ablation.request.Request`.

    Returns:
        The folder of the ablation, and the keys of its rows in the order in which to measure them.

    Raises:
        ConfigError: If the request cannot be planned.
        DataError: If the line's data is not available.
    """
    with step(services, "plan_ablation"):
        folder = make_plan(parse_request(json.loads(request_json)), services)
        return str(folder), measuring_order(read_plan(folder), services)


def variant_step(services: Services, folder: str, key: str) -> str:
    """Measure one variant unless its row has figures already.

    Args:
        services: The outside systems.
        folder: The folder of the ablation.
        key: The key of the variant's row.

    Returns:
        The key.
    """
    with step(services, "ablate_variant"):
        return run_variant(Path(folder), key, services).key


def collect_step(services: Services, folder: str, keys: Sequence[str], *, page_out: str | Path) -> str:
    """Write tables and plots, attach them to the MLflow run, and copy the page to where KFP shows it.

    Args:
        services: The outside systems.
        folder: The folder of the ablation.
        keys: The keys of the rows that were measured.
        page_out: File that the page is copied to.

    Returns:
        The folder.

    Raises:
        DataError: If a variant was not measured.
    """
    with step(services, "collect_ablation"):
        missing = set(read_plan(Path(folder)).keys) - set(keys)
        if missing:
            raise DataError(f"{len(missing)} variants of {folder} were not measured. Run the ablation again.")
        written = collect(Path(folder), services)
        shutil.copyfile(written / f"{TABLE}.html", page_out)
        return str(written)
