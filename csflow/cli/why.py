"""``csflow why``: explain how a version came about, from the data to the decision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from csflow.cli.options import JsonOption, print_json
from csflow.config import KINDS
from csflow.errors import RegistryError
from csflow.runs.services import Services

if TYPE_CHECKING:
    from csflow.adapters.mlflow.runs import Run
    from csflow.adapters.mlflow.versions import Version

Facts = dict[str, str]

_OF_MANY = {
    "flow": ("flow.blocks", "flow.hidden"),
    "training": ("training.epochs", "training.batch_size", "training.learning_rate"),
}
"""The keys to show of sections that have many; of other sections all are shown."""

_LABELS = {"flow.hidden": "hidden width"}


@dataclass(frozen=True)
class Story:
    """The history of a version in four parts, each as names and values in reading order."""

    line: str
    version: int
    data: Facts
    run: Facts
    gate: Facts
    now: Facts


def why(
    name: Annotated[str, typer.Argument(metavar="LINE[@VERSION]", help="A line's champion, or one of its versions.")],
    as_json: JsonOption = False,
) -> None:
    """Explain how a version came about: data, run, gate, and its present state."""
    from csflow.adapters.mlflow.versions import CHAMPION
    from csflow.config import load_line

    services = Services.from_environment()
    line, _, which = name.partition("@")
    try:
        version = services.registry.find_version(line, which or CHAMPION)
    except RegistryError:
        load_line(line)  # a mistyped name is more likely, and this error suggests the nearest one
        raise
    story = tell(services, version)
    if as_json:
        print_json(asdict(story))
    else:
        _print(story)


def tell(services: Services, version: Version) -> Story:
    """Collect the data of a version from registry, run, gate and endpoint."""
    try:
        run = services.tracker.read_run(version.run_id)
    except RegistryError:  # somebody deleted the run; the version's tags still have the essentials
        run = None
    return Story(
        line=version.line,
        version=version.version,
        data=_data(version, run),
        run=_run(version, run),
        gate=_gate(version),
        now=_now(services, version),
    )


def _data(version: Version, run: Run | None) -> Facts:
    params, metrics = (run.params, run.metrics) if run else ({}, {})
    counts = [f"{count:.0f} {role}" for role, count in _starting_with("images_", metrics).items()]
    return _known(
        {
            "repository": params.get("data.repo"),
            "folder": params.get("data.path"),
            "revision": version.tags.get("git_rev"),
            "DVC md5": version.tags.get("data_md5"),
            "digest": version.tags.get("data_digest"),
            "images": ", ".join(counts),
        }
    )


def _run(version: Version, run: Run | None) -> Facts:
    tags = version.tags
    if run is None:
        return _known({"id": version.run_id, "state": "no longer in MLflow"})
    steps = [f"{step} {seconds:.1f}" for step, seconds in _starting_with("seconds_", run.metrics).items()]
    return _known(
        {
            "id": run.run_id,
            "started": f"{run.started.astimezone():%Y-%m-%d %H:%M:%S %Z}",
            **_method(run.params, tags.get("seed")),
            "seconds": ", ".join(steps),
            "defects found": tags.get("defects_found"),
            "image AUROC": _with_interval(version),
            "pixel AUROC": _decimal(version, "pixel_auroc"),
            "threshold": _decimal(version, "threshold"),
            "promise": tags.get("promise"),
            "detector": tags.get("detector_digest"),
        }
    )


def _method(params: Mapping[str, str], seed: str | None) -> dict[str, str | None]:
    """Collect the kind of detector and those settings that it reads; the run has the keys of every kind."""
    name = params.get("detector", "csflow")
    kind = KINDS.get(name)
    settings: dict[str, str | None] = {}
    for section in kind.sections if kind else ():
        keys = _OF_MANY.get(section) or [key for key in params if key.startswith(f"{section}.")]
        settings |= {_LABELS.get(key, key.partition(".")[2].replace("_", " ")): params.get(key) for key in keys}
    shots = params.get("roles.shots", "none")
    drawn = kind is None or kind.seeded or shots != "none"
    return {
        "kind": f"{kind.title} (detector: {name})" if kind else name,
        "backbone": params.get("features.backbone"),
        "image size": params.get("features.image_size"),
        **settings,
        "shots": None if shots == "none" else shots,
        "seed": seed if drawn else None,
    }


def _gate(version: Version) -> Facts:
    evidence = json.loads(version.tags.get("decision_evidence", "{}"))
    return _known(
        {
            "decision": version.decision or "none yet: the run did not reach the gate",
            "because": version.tags.get("decision_reason"),
            **{name.replace("_", " "): _plain(value) for name, value in evidence.items()},
        }
    )


def _now(services: Services, version: Version) -> Facts:
    from csflow.runs.line_state import read_line_state

    state = read_line_state(services, version.line)
    champion, endpoint, hold = state.champion, state.endpoint, state.hold
    return _known(
        {
            "alias": ", ".join(version.aliases) or "none",
            "champion": f"version {champion.version}" if champion else "none",
            "endpoint": f"{endpoint.url}, serving version {endpoint.version}" if endpoint else "not running",
            "hold": " ".join(f"{key}: {value}" for key, value in hold.items() if value) if hold else None,
        }
    )


def _with_interval(version: Version) -> str | None:
    value, low, high = (version.number(f"image_auroc{end}") for end in ("", "_low", "_high"))
    if value is None:
        return None
    return f"{value:.4f}" if low is None or high is None else f"{value:.4f} (interval {low:.4f} to {high:.4f})"


def _decimal(version: Version, tag: str) -> str | None:
    value = version.number(tag)
    return None if value is None else f"{value:.4f}"


def _plain(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _starting_with(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in sorted(metrics.items()) if name.startswith(prefix)}


def _known(facts: dict[str, str | None]) -> Facts:
    return {key: value for key, value in facts.items() if value}


def _print(story: Story) -> None:
    from csflow.system.tables import print_facts

    typer.echo(f"{story.line} version {story.version}")
    chapters = {"Data": story.data, "Run": story.run, "Gate": story.gate, "Now": story.now}
    for title, facts in chapters.items():
        typer.echo()
        print_facts(list(facts.items()), title=title, indent=2)
