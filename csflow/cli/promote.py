"""``csflow promote``: serve a version because a person decides so, or release a hold."""

from __future__ import annotations

from typing import Annotated

import typer

from csflow.errors import UsageError
from csflow.runs.services import Services


def promote_version(
    name: Annotated[str, typer.Argument(metavar="LINE[@VERSION]", help="A version to make champion and serve.")],
    release_hold: Annotated[
        bool, typer.Option("--release-hold", help="Only let retrains replace the champion again after a rollback.")
    ] = False,
) -> None:
    """Make a version champion by hand, without the gate, and serve it; this ends a hold."""
    from csflow.config import load_line
    from csflow.release import promotion

    line_name, _, version = name.partition("@")
    if bool(version) == release_hold:
        raise UsageError(
            f"Give a version to promote (csflow promote {line_name}@VERSION; csflow lines and csflow compare "
            f"{line_name} show them) or --release-hold."
        )
    services, line = Services.from_environment(), load_line(line_name)
    if release_hold:
        hold = promotion.release_hold(services, line.line)
        typer.echo(
            f"{line.line}: the hold of {hold.get('user')} from {hold.get('time')} is gone; retrains may promote."
        )
        return
    if not version.isdecimal():
        raise UsageError(f"{name}: expected a version number after '@', got {version!r}.")
    done = promotion.promote_by_hand(services, line, int(version))
    services.registry.back_up()
    assert done.endpoint is not None
    typer.echo(f"{line.line}: version {done.champion} is champion, served at {done.endpoint.url}")
