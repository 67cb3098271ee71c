"""``csflow lines``: list every line with its champion and endpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from csflow.cli.options import JsonOption, print_json, require_line_names
from csflow.config import load_line
from csflow.errors import ConfigError, DeployError, NotRegisteredError, RegistryError
from csflow.runs.services import Services

if TYPE_CHECKING:
    from csflow.adapters.mlflow.versions import Version


@dataclass(frozen=True)
class LineRow:
    """A row of the list, for one line; the champion's values are ``None`` if there is no champion."""

    line: str
    description: str
    champion: int | None
    image_auroc: float | None
    threshold: float | None
    git_rev: str | None
    endpoint: str | None
    serves: str | None
    held: bool
    error: str
    beside: str = ""
    endpoint_error: str = ""


def lines(as_json: JsonOption = False) -> None:
    """List the lines: champion, its quality and threshold, the data it was trained on, and its endpoint."""
    names = require_line_names()
    services = Services.from_environment()
    services.registry.lines()  # a registry that cannot be read at all is no trouble of a single line
    rows = [_row(services, name) for name in names]
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        _print(rows)


def _row(services: Services, name: str) -> LineRow:
    """Read the row of a line.

    A broken YAML or a line that the registry has lost affects only its own row, an unreachable cluster only the
    endpoints.
    """
    from csflow.release.lost import require_champion
    from csflow.runs.line_state import read_line_state

    description = ""
    try:
        line = load_line(name)
        description = line.description
        state = read_line_state(services, line.line, tolerate=DeployError)
        if state.champion is None:
            require_champion(name, _versions(services, name))
    except (ConfigError, RegistryError) as error:
        return LineRow(name, description, None, None, None, None, None, None, False, str(error))
    champion, endpoint = state.champion, state.endpoint
    return LineRow(
        line=line.line,
        description=line.description,
        champion=champion.version if champion else None,
        image_auroc=champion.number("image_auroc") if champion else None,
        threshold=champion.number("threshold") if champion else None,
        git_rev=champion.tags.get("git_rev") if champion else None,
        endpoint=endpoint.url if endpoint else None,
        serves=endpoint.version if endpoint else None,
        held=state.hold is not None,
        error="",
        beside=endpoint.beside if endpoint else "",
        endpoint_error=" ".join(state.troubles),
    )


def _versions(services: Services, line: str) -> list[Version]:
    try:
        return services.registry.versions(line)
    except NotRegisteredError:
        return []


def _print(rows: list[LineRow]) -> None:
    from csflow.system.tables import print_line, print_table

    headers = ("line", "champion", "image AUROC", "threshold", "data", "endpoint")
    print_table(headers, [_cells(row) for row in rows], styles=["red" if row.error else "" for row in rows])
    for trouble in dict.fromkeys(text for row in rows for text in (row.error, row.endpoint_error) if text):
        print_line(trouble, style="red")


def _cells(row: LineRow) -> tuple[str, ...]:
    if row.error:
        return (row.line, "broken", "", "", "", "")
    return (
        row.line,
        "-" if row.champion is None else f"{row.champion}{' (held)' if row.held else ''}",
        "-" if row.image_auroc is None else f"{row.image_auroc:.4f}",
        "-" if row.threshold is None else f"{row.threshold:.4f}",
        (row.git_rev or "-")[:12],
        _endpoint(row),
    )


def _endpoint(row: LineRow) -> str:
    if row.endpoint is None:
        return "unknown" if row.endpoint_error else "not running"
    if row.serves != str(row.champion):
        return f"{row.endpoint} (version {row.serves}: csflow reconcile {row.line})"
    return f"{row.endpoint} (canary: {row.beside})" if row.beside else row.endpoint
