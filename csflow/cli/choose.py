"""``csflow choose``: pick the variant of the newest ablation that is good enough and fits the takt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from csflow.cli.options import JsonOption, LineArgument, print_json
from csflow.errors import UsageError
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from csflow.ablation.summaries import VariantSummary
    from csflow.ablation.timing import Timing
    from csflow.ablation.tradeoff import Choice, Criterion
    from csflow.config import LineConfig


def choose(
    line: LineArgument,
    takt_ms: Annotated[
        float | None,
        typer.Option(
            "--takt-ms",
            min=0.001,
            help="Most milliseconds one image may take.",
            show_default="the line's serving.takt_ms",
        ),
    ] = None,
    by: Annotated[
        Literal["synthetic", "test"],
        typer.Option(
            help="Judge by synthetic defects on held-out good images, or by the labelled test images. Synthetic ones "
            "cannot order variants of score and map, so these are candidates with test only."
        ),
    ] = "synthetic",
    as_json: JsonOption = False,
) -> None:
    """Pick the best variant of the line's newest ablation that fits the takt, and print the YAML keys to set.

    Of all variants within the best one's 95 % interval, the fastest is chosen. With --by synthetic the line keeps its
    own score and map, because synthetic defects rank scores and maps differently from real ones.
    """
    from csflow.ablation.collect import read_results
    from csflow.ablation.plan import newest_ablation
    from csflow.ablation.tradeoff import choose_variant
    from csflow.config import load_line

    config, workspace = load_line(line), Workspace.from_environment()
    takt_ms = takt_ms or config.serving.takt_ms
    if takt_ms is None:
        raise UsageError(f"Give --takt-ms, or set serving.takt_ms in the YAML of {config.line}.")
    folder = newest_ablation(config.line, workspace)
    planned, summaries = read_results(folder, workspace)
    ours = [each for each in summaries if each.variant.line.line == config.line]
    found = choose_variant(ours, takt_ms, by, planned.base.scoring)
    if as_json:
        print_json(_as_json(found, config, folder))
        return
    _print(found, takt_ms, by)
    _warn(found, takt_ms, by, missing=sum(each.missing for each in summaries))
    _print_keys(found.chosen, config)
    typer.echo(f"From the ablation of {planned.planned[:16].replace('T', ' ')} UTC, rows in {folder / 'rows'}")


def _as_json(found: Choice, config: LineConfig, folder: Path) -> dict[str, object]:
    from csflow.ablation.request import differences

    return {
        "chosen": found.chosen.name,
        "milliseconds": found.chosen.milliseconds,
        "keys": differences(found.chosen.variant.line, config),
        "front": [each.name for each in found.front],
        "tied": found.tied,
        "rows": str(folder / "rows"),
    }


def _print(found: Choice, takt_ms: float, by: Criterion) -> None:
    from csflow.ablation.table import METRICS, number, percent
    from csflow.ablation.tradeoff import METRIC
    from csflow.system.tables import print_table

    chosen, timing = found.chosen, found.chosen.sound[0].timing
    ms = number(chosen.milliseconds, ".1f")
    typer.echo(f"Chosen for a takt of {takt_ms:g} ms: {chosen.name}, {ms} ms an image")
    if found.tied > 1 and found.best is not chosen:
        typer.echo(f"  {found.tied} variants lie within the interval of the best one ({found.best.name}): the fastest.")
    if timing is not None:
        typer.echo(f"  measured on: {timing.machine}; 95 % of the images took at most {timing.p95_ms:.1f} ms")
    rows = []
    for each in found.front:
        mark = "chosen" if each is chosen else "too slow" if (each.milliseconds or 0) > takt_ms else ""
        keys = " ".join(row.key[:8] for row in each.rows)
        rows.append((each.name, number(each.milliseconds, ".1f"), percent(each.metric(METRIC[by])), mark, keys))
    print_table(("on the Pareto front", "ms", METRICS[METRIC[by]], "", "rows"), rows)


def _warn(found: Choice, takt_ms: float, by: Criterion, *, missing: int) -> None:
    timing = found.chosen.sound[0].timing
    _warn_of_times(found.timings)
    if timing is not None and timing.p95_ms > takt_ms:
        typer.echo("Note: more than 5 % of the images took longer than the takt; only the median fits.")
    if by == "test":
        typer.echo(
            "Note: chosen on the test images, so their AUROC is too good for the chosen variant: judge it on new ones. "
            "--by synthetic leaves them untouched."
        )
    if found.left_out:
        names = ", ".join(each.name for each in found.left_out)
        typer.echo(f"Note: left out, since synthetic defects cannot order scores and maps: {names}.")
    if missing:
        typer.echo(f"Note: {missing} variants of this ablation were not measured yet.")


def _warn_of_times(timings: Sequence[Timing]) -> None:
    """Warn if the milliseconds of the candidates are doubtful; another ablation on this machine times them again."""
    from csflow.ablation.timing import machine

    machines = sorted({timing.machine for timing in timings})
    if len(machines) > 1:
        typer.echo(f"Note: the variants were timed on different machines ({'; '.join(machines)}).")
    if set(machines) != {machine()}:
        typer.echo(f"Note: this machine is another one ({machine()}). Ablate on the machine that will score.")
    loads = [timing.load for timing in timings if timing.busy and timing.load is not None]
    if loads:
        typer.echo(
            f"Note: {len(loads)} of {len(timings)} times were taken while other processes kept up to {max(loads):.1f} "
            "cores busy, so they are too long. Ablate again when nothing else runs: only these are taken anew."
        )


def _print_keys(chosen: VariantSummary, base: LineConfig) -> None:
    """Print the changes to the line's YAML, as YAML."""
    from typing import Any

    import yaml

    from csflow.ablation.request import differences

    keys = differences(chosen.variant.line, base)
    if not keys:
        typer.echo("The line's YAML has these keys already: nothing to set.")
        return
    nested: dict[str, Any] = {}
    for key, value in keys.items():
        section, _, name = key.partition(".")
        if name:
            nested.setdefault(section, {})[name] = value
        else:
            nested[key] = value
    typer.echo("Set in the line's YAML:\n" + yaml.safe_dump(nested, sort_keys=False, default_flow_style=None).rstrip())
