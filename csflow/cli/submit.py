"""``csflow submit``: start a run of a line on a Kubeflow Pipelines server."""

from __future__ import annotations

from typing import Annotated

import typer

from csflow.cli.options import AccountOption, ForceOption, JsonOption, LineArgument, print_json
from csflow.errors import UsageError
from csflow.runs.services import Services
from csflow.system.project import project_module

_EXIT_FAILED = 1


def submit(
    line: LineArgument,
    force: ForceOption = False,
    if_changed: Annotated[
        bool, typer.Option("--if-changed", help="Only if the line's images are not those of its champion.")
    ] = False,
    shards: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Pods that extract features at once.", show_default="resources.shards"),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the run; exit with 1 if it fails.")] = False,
    account: AccountOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a run of a line's pipeline on the Kubeflow Pipelines server that CSFLOW_KFP_URL names."""
    from csflow.config import load_line

    if force and if_changed:
        raise UsageError("--force trains even if nothing has changed, --if-changed only if something has. Give one.")
    config = load_line(line)
    submission = project_module("pipelines.submission")
    submission.require_reachable(config)
    if if_changed:
        from csflow.runs.unchanged import unchanged_since_champion

        if same := unchanged_since_champion(config, Services.from_environment()):
            if as_json:
                print_json({"submitted": False, "reason": same})
            else:
                typer.echo(f"Nothing submitted: {same}.")
            return
    server = project_module("pipelines.server").Server.from_environment()
    run = submission.submit_run(server, config, force=force, shards=shards, account=account)
    url = f"{server.url}/#/runs/details/{run.id}"
    if not as_json:
        typer.echo(f"Submitted {run.name}: {url}")
    ended = submission.wait(server, run, say=lambda text: typer.echo(text, err=as_json)) if wait else run
    if as_json:
        print_json({"submitted": True, "name": run.name, "id": run.id, "url": url, "state": ended.state})
    if wait and ended.state != "SUCCEEDED":
        typer.echo(f"Error: {ended.name} ended as {ended.state.lower()}. {ended.error}".rstrip(), err=True)
        raise typer.Exit(_EXIT_FAILED)
