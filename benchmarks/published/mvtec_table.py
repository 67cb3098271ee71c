"""Format Table 1 for a terminal and for a README: our figures and the paper's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from published.mvtec_paper import Group, PaperTable, averages
from published.protocol import RowSpec


def show(
    rows: Sequence[Mapping[str, Any]], quoted: PaperTable, methods: Sequence[RowSpec], *, quick: bool = False
) -> None:
    """Print one line a class, the averages, and the failures; figures that are only quoted are on the right."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Table 1: MVTec AD, image AUROC in %; ours and the paper's", title_justify="left")
    first, *others = _headings(quoted, methods)
    table.add_column(first)
    for heading in others:
        table.add_column(escape(heading), justify="right")
    for cells in _class_lines(rows, quoted, methods):
        table.add_row(*map(escape, cells))
    table.add_section()
    for cells in _average_lines(rows, quoted, methods):
        table.add_row(*map(escape, cells))
    console = Console(width=max(Console().width, 150))
    console.print(table)
    for row in rows:
        if "error" in row:
            console.print(f"Failed: {row['class']}, {row['method']}: {row['error']}", highlight=False, markup=False)
    if quick:
        console.print("Ours: a quick run that says nothing about quality.", highlight=False)


def markdown(rows: Sequence[Mapping[str, Any]], quoted: PaperTable, methods: Sequence[RowSpec]) -> str:
    """Format the table for a README."""
    head = [heading.replace("\n", ", ") for heading in _headings(quoted, methods)]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    lines += [*_class_lines(rows, quoted, methods), *_average_lines(rows, quoted, methods)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _headings(quoted: PaperTable, methods: Sequence[RowSpec]) -> list[str]:
    ours = [f"{method.method}\nours / paper" for method in methods]
    return ["class", *ours, *(f"{other}\nquoted" for other in quoted.averages["average"].others)]


def _class_lines(
    rows: Sequence[Mapping[str, Any]], quoted: PaperTable, methods: Sequence[RowSpec]
) -> Iterator[list[str]]:
    for name in dict.fromkeys(row["class"] for row in rows):
        by_method = {row["method"]: row for row in rows if row["class"] == name}
        theirs = quoted.classes[name].others if name in quoted.classes else {}
        figures = [_per_cent(theirs.get(other)) for other in quoted.averages["average"].others]
        yield [name, *(_cell(by_method.get(method.method)) for method in methods), *figures]


def _average_lines(
    rows: Sequence[Mapping[str, Any]], quoted: PaperTable, methods: Sequence[RowSpec]
) -> Iterator[list[str]]:
    for group in get_args(Group):
        theirs = quoted.averages[group].others
        figures = [_per_cent(theirs[other]) for other in quoted.averages["average"].others]
        yield [group.capitalize(), *(_average_cell(rows, method, group, quoted) for method in methods), *figures]


def _average_cell(rows: Sequence[Mapping[str, Any]], method: RowSpec, group: Group, quoted: PaperTable) -> str:
    """Format our average and the paper's if they are over the same classes; else the number of classes."""
    found = averages(rows, method.method, quoted).get(group)
    if found is None:
        return ""
    if not found.is_complete:
        return f"{_per_cent(found.value)} ({found.classes} of {found.of})"
    foreign = {row["class"] for row in rows if row["method"] == method.method} - set(quoted.classes)
    if method.joint and foreign:  # its one model was fitted to them as well, which is a different task from the paper's
        return f"{_per_cent(found.value)} (fitted to {len(foreign)} more)"
    printed = quoted.averages[group]
    joint = quoted.joint if group == "average" else None
    theirs = joint if method.joint else printed.shots if method.fits_few else printed.full
    return f"{_per_cent(found.value)} / {_per_cent(theirs)}"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    ours = "failed" if "error" in row else f"{100 * row['image_auroc']['mean']:.1f}"
    return f"{ours} / {_per_cent(row['paper'])}"


def _per_cent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
