"""``csflow reconcile``: make the endpoint serve the champion."""

from __future__ import annotations

from typing import Annotated

import typer

from csflow.runs.services import Services


def reconcile_endpoint(name: Annotated[str, typer.Argument(metavar="LINE", help="The line.")]) -> None:
    """Make endpoint and champion alias agree, for instance after a crash or a restart of the machine."""
    from csflow.config import load_line
    from csflow.release import promotion

    line = load_line(name)
    done = promotion.reconcile(Services.from_environment(), line)
    where = f", served at {done.endpoint.url}" if done.endpoint else ""
    typer.echo(f"{line.line}: {done.reason}{where}")
