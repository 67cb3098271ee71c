"""``csflow endpoint``: show the endpoint of a line, or its InferenceService on a cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from csflow.cli.options import JsonOption, print_json
from csflow.runs.services import Services


def endpoint(
    name: Annotated[str, typer.Argument(metavar="LINE", help="The line.")],
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="Print the InferenceService of the champion, as a promotion applies it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the endpoint that serves a line; with --yaml, its InferenceService for kubectl and GitOps."""
    from csflow.config import load_line

    services, line = Services.from_environment(), load_line(name)
    if as_yaml:
        import yaml

        from csflow.release.deployment import champion_document

        typer.echo(yaml.safe_dump(champion_document(services, line), sort_keys=False), nl=False)
        return
    found = services.endpoints.status(line.line)
    if as_json:
        keys = ("line", "url", "version", "digest", "beside", "log")
        print_json(None if found is None else {key: getattr(found, key) for key in keys})
        return
    if found is None:
        typer.echo(f"{line.line}: nothing answers. Serve its champion: csflow reconcile {line.line}")
        return
    typer.echo(f"{line.line}: {found.url} serves version {found.version} (digest {found.digest[:12]})")
    if found.beside:
        typer.echo(f"It shares the requests with: {found.beside}")
    typer.echo(f"Log: {found.log}")
