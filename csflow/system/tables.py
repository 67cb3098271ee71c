"""Print tables that are never cut, on a terminal of any width and in a pipe."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

CellText = str
"""A cell's text; rich markup is not read, so that paths and messages appear as they are."""


def print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[CellText]],
    *,
    title: str = "",
    caption: str = "",
    styles: Sequence[str] = (),
    sections: Sequence[int] = (),
) -> None:
    """Print a table; where it does not fit, print one block a row instead.

    A pipe has no width: there the table is as wide as its cells.

    Args:
        headers: Names of the columns.
        rows: Cells of every row, as many as there are headers.
        title: Line above the table.
        caption: Text below it.
        styles: Rich style of each row, such as ``red``; none if it is empty.
        sections: Indices of rows that are followed by a line.
    """
    from rich.text import Text

    console = _console()
    if title:
        console.print(Text(title, style="italic"), soft_wrap=True)
    table = _table(headers, rows, styles, sections)
    if _fits(console, table):
        console.print(table)
    else:
        _print_blocks(console, headers, rows, styles)
    if caption:
        console.print(caption, markup=False, highlight=False, soft_wrap=True)


def print_facts(facts: Sequence[tuple[str, str]], *, title: str = "", indent: int = 0) -> None:
    """Print names and values below each other; long values are wrapped, never cut.

    Args:
        facts: Names and values, in the order of reading.
        title: Line above them.
        indent: Columns to indent them by.
    """
    from rich.text import Text

    console = _console()
    if title:
        console.print(Text(title, style="bold"))
    names = max((len(name) for name, _ in facts), default=0)
    for name, value in facts:
        start = f"{' ' * indent}{name:<{names}}  "
        room = max(console.width - len(start), 20)
        # A pipe's reader wants one line a fact; on a terminal the continuation lines are indented like the first.
        parts = textwrap.wrap(value, room) if console.is_terminal else [value]
        for index, part in enumerate(parts or [""]):
            head = Text(start, style="dim") if index == 0 else Text(" " * len(start))
            console.print(head.append(part, style="not dim"), soft_wrap=True)


def print_line(text: str, *, style: str = "") -> None:
    """Print one line of text as it is: no markup, no colours for numbers, wrapped only by the terminal."""
    _console().print(text, markup=False, highlight=False, soft_wrap=True, style=style or None)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    # Rich takes 80 columns where nobody looks; a reader of a pipe wants whole rows.
    return console if console.is_terminal or "COLUMNS" in console._environ else Console(width=10_000)


def _table(
    headers: Sequence[str], rows: Sequence[Sequence[CellText]], styles: Sequence[str], sections: Sequence[int]
) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for header in headers:
        table.add_column(Text(header), overflow="fold")
    for index, row in enumerate(rows):
        style = styles[index] if styles else ""
        table.add_row(*(Text(cell, style=style) for cell in row), end_section=index in sections)
    return table


def _fits(console: Console, table: Table) -> bool:
    return console.measure(table, options=console.options.update(max_width=100_000)).maximum <= console.width


def _print_blocks(
    console: Console, headers: Sequence[str], rows: Sequence[Sequence[CellText]], styles: Sequence[str]
) -> None:
    """Print each row as a block: its first cell, then every other cell as ``header: cell``."""
    from rich.text import Text

    for index, row in enumerate(rows):
        style = styles[index] if styles else ""
        console.print(Text(row[0] or headers[0], style=f"bold {style}".strip()), soft_wrap=True)
        for header, cell in zip(headers[1:], row[1:], strict=True):
            if cell:
                console.print(Text(f"  {header}: {cell}", style=style), soft_wrap=True)
