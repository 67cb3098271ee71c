"""``csflow restore``: bring a lost or damaged registry back from a backup."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from csflow.cli.options import JsonOption, print_json
from csflow.errors import UsageError
from csflow.runs.services import Services


@dataclass(frozen=True)
class BackupRow:
    """A row of the list, for one backup."""

    name: str
    made: str
    bytes: int
    holds: str


def restore_registry(
    backup: Annotated[
        str | None,
        typer.Argument(metavar="BACKUP", help="newest, the name of a backup, or the path of a copy of the database."),
    ] = None,
    start_over: Annotated[
        bool,
        typer.Option(
            "--start-over",
            help="Go on without what was lost: published detectors without a version are left as they are.",
        ),
    ] = False,
    lines: Annotated[
        list[str] | None, typer.Argument(metavar="LINE", help="With --start-over: only these lines.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the backups of the registry, or put one of them back.

    csflow keeps backups of its local database: one of each of the last states of the registry, made when a run begins,
    when a version was promoted, and before versions are removed. The present database is kept under another name.

    Runs and versions that are newer than the backup are missing afterwards. If a detector of such a version is
    published, the next run says so and stops; --start-over accepts it.
    """
    services = Services.from_environment()
    if start_over:
        from csflow.release.lost import start_over as go_on

        done = go_on(services, [*([backup] if backup else []), *(lines or [])])
        if as_json:
            print_json(done)
        for line, count in done.items() if not as_json else ():
            typer.echo(f"{line}: {count} published or served detectors have no version and are left alone")
        return
    if lines:
        raise UsageError("Give one backup. Names of lines belong to --start-over.")
    database = services.workspace.database
    if database is None:
        raise UsageError(
            f"The registry is at {services.workspace.tracking_uri}, which csflow does not back up. Restore its "
            "database with the tools of that server."
        )
    if backup is None:
        _list(database, as_json=as_json)
    else:
        _restore(services, database, backup, as_json=as_json)


def _list(database: Path, *, as_json: bool) -> None:
    from csflow.adapters.mlflow.backups import backups_folder, list_backups
    from csflow.system.tables import print_line, print_table

    found = list_backups(database)
    rows = [
        BackupRow(each.path.name, f"{each.made:%Y-%m-%d %H:%M:%S}", each.path.stat().st_size, each.summary)
        for each in found
    ]
    if as_json:
        print_json([row.__dict__ for row in rows])
        return
    if not rows:
        print_line(f"No backups of {database} in {backups_folder(database)} yet.")
        return
    cells = [(row.name, row.made, f"{row.bytes / 1e6:.1f} MB", row.holds) for row in rows]
    print_table(("backup", "made (UTC)", "size", "holds"), cells, title=f"Backups of {database}")
    print_line("Put one back: csflow restore newest, or csflow restore BACKUP")


def _restore(services: Services, database: Path, which: str, *, as_json: bool) -> None:
    from csflow.adapters.mlflow.backups import restore
    from csflow.adapters.mlflow.database import initialise, lock_of
    from csflow.release.lost import lost_digests
    from csflow.system.files import exclusive

    with exclusive(lock_of(database)):
        backup, before = restore(database, which)
    initialise(services.workspace)
    missing = {
        line: sorted(lost)
        for line in services.registry.lines()
        if (lost := lost_digests(services, line, services.registry.versions(line)))
    }
    if as_json:
        print_json({"restored": str(backup.path), "kept": str(before) if before else None, "missing": missing})
        return
    typer.echo(f"Restored {backup.path.name}: {backup.summary}")
    if before is not None:
        typer.echo(f"The former database is {before}")
    for line, newer in missing.items():
        typer.echo(
            f"{line}: {len(newer)} published or served detectors are newer than this backup. Serve its champion: "
            f"csflow reconcile {line}. To let the line train again: csflow restore --start-over {line}"
        )
