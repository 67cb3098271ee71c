"""``csflow prune``: list and remove what no live version needs any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from csflow.cli.options import JsonOption, print_json
from csflow.errors import CacheError
from csflow.runs.services import Services

if TYPE_CHECKING:
    from csflow.release.prune_plan import PrunePlan


def prune(
    keep: Annotated[int, typer.Option(min=1, help="Newest versions of every line that stay in any case.")] = 5,
    older_than: Annotated[int, typer.Option(min=1, help="Days; whatever was made or used since then stays.")] = 7,
    apply: Annotated[
        bool, typer.Option("--apply", help="Remove what is listed; without it nothing is changed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what is no longer needed, for all lines at once; with --apply, remove it.

    That is: old versions with their published detectors, features that no remaining version uses, fitted models and
    checkpoints of other trainings, folders of runs that became no version, checked-out images that were not used for
    long (they are fetched again when needed), and what killed processes were writing. With --apply, parts of old
    uploads that were never finished are removed as well. The command covers the workspace, the store that CSFLOW_STORE
    names, and the registry.

    A version stays if an alias, an endpoint or a hold names it, if a rollback would return to it, or if the gate
    compares challengers with it. One store belongs to one registry.
    """
    from csflow.release.prune import plan_pruning
    from csflow.release.prune_plan import PrunePolicy
    from csflow.release.removal import remove

    services = Services.from_environment()
    made = plan_pruning(services, PrunePolicy.of(keep, older_than))
    if not as_json:
        _print(made)
    if apply:
        services.registry.back_up()
    removed = remove(services, made) if apply else None
    if as_json:
        print_json(_as_json(made, removed))
    elif removed is not None:
        typer.echo(f"removed {_size(removed)}")
    elif made.removals:
        typer.echo("Nothing was changed. To remove what is listed: csflow prune --apply (with the same options)")
    if made.refusal:
        raise CacheError(made.refusal)


def _print(made: PrunePlan) -> None:
    from csflow.system.tables import print_line, print_table

    rows = []
    for each in made.removals:
        numbers = [str(version.version) for version in each.versions]
        count = f"{each.count} ({', '.join(numbers)})" if numbers else str(each.count)
        rows.append((each.what, each.where, count, _size(each.bytes)))
    rows.append(("in all", "", "", _size(made.bytes)))
    print_table(("what", "where", "number", "size"), rows, title="Not needed any more", sections=[len(rows) - 2])
    for line, versions in made.live.items():
        reasons = [f"{number} ({', '.join(why)})" for number, why in sorted(versions.items(), reverse=True)]
        print_line(f"{line} keeps {', '.join(reasons) or 'nothing'}")
    for note in made.notes:
        print_line(note)


def _as_json(made: PrunePlan, removed: int | None) -> dict[str, object]:
    listed = [
        {
            "what": each.what,
            "where": each.where,
            "versions": [version.version for version in each.versions],
            "count": each.count,
            "bytes": each.bytes,
        }
        for each in made.removals
    ]
    live = {line: {str(number): why for number, why in versions.items()} for line, versions in made.live.items()}
    return {"removals": listed, "bytes": made.bytes, "live": live, "notes": made.notes, "removed_bytes": removed}


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
