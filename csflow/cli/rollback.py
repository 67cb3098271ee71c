"""``csflow rollback``: return to a former champion."""

from __future__ import annotations

from typing import Annotated

import typer

from csflow.runs.services import Services


def rollback_champion(
    name: Annotated[str, typer.Argument(metavar="LINE", help="The line.")],
    to: Annotated[int | None, typer.Option(min=1, help="Former champion; by default the last one.")] = None,
    reason: Annotated[str, typer.Option(help="Why; shown later with the hold.")] = "",
) -> None:
    """Serve a former champion again and hold it: retrains will not replace it until the hold is released."""
    from csflow.config import load_line
    from csflow.release import promotion

    line, services = load_line(name), Services.from_environment()
    done = promotion.rollback(services, line, to, reason=reason)
    services.registry.back_up()
    assert done.endpoint is not None
    typer.echo(f"{line.line}: version {done.champion} is champion again, served at {done.endpoint.url}")
    typer.echo(f"Retrains keep it until: csflow promote {line.line} --release-hold")
