"""Draw docs/images/architecture.svg, the way of a line's images from the camera to the endpoint.

    .venv/bin/python docs/images/make_architecture.py

The drawing is almost square and its type is large, so that it can be read on a phone as well as on a desktop. It has a
background of its own, light or dark as the reader's system is, and needs no font but those of the system.
"""

from __future__ import annotations

import argparse
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

TARGET = Path(__file__).resolve().with_name("architecture.svg")

BOX_WIDTH, BOX_HEIGHT, FOOTER = 248, 214, 82
GAP_X, GAP_Y = 44, 84
LEFT, TOP = 28, 122
WIDTH, HEIGHT = 2 * LEFT + 3 * BOX_WIDTH + 2 * GAP_X, TOP + 3 * BOX_HEIGHT + 2 * GAP_Y + LEFT

TITLE = "How csflow works"
DESCRIPTION = (
    "A loop of eight stations. Good images of a product line (DVC, step ingest) pass the data gate (Great "
    "Expectations, step validate) and become frozen features in a feature store (timm and ONNX Runtime, step "
    "cache_features). The flow is trained on them (PyTorch, step train) and gets a threshold with a stated "
    "false-alarm rate and a report (MLflow, step evaluate). The detector enters the registry (MLflow, step "
    "register) and meets the champion at the promotion gate (MLflow and KServe, step promote). The winner "
    "serves the endpoint (KServe), which answers with score, decision and heat-map. New images start the loop "
    "again every night. All of it is orchestrated by Kubeflow Pipelines, on one machine or a cluster."
)

STYLE = """
    text { fill: #17212e }
    text { font-family: Arial, Helvetica, "Liberation Sans", Roboto, "DejaVu Sans Condensed", sans-serif }
    .frame { fill: #f4f7fb; stroke: #94a3b8; stroke-width: 3; stroke-dasharray: 4 9; stroke-linecap: round }
    .head { font-size: 31px; font-weight: bold }
    .sub { font-size: 25px; fill: #475569 }
    .box { fill: #ffffff }
    .rim { fill: none; stroke-width: 3 }
    .title { font-size: 29px; font-weight: bold }
    .note { font-size: 25px; fill: #475569 }
    .tool { font-size: 22px; font-weight: bold; fill: #ffffff }
    .step { font-size: 23px; fill: #ffffff }
    .step { font-family: Menlo, Consolas, "Liberation Mono", "DejaVu Sans Mono", monospace }
    .data { fill: #1d4ed8 } .data-rim { stroke: #1d4ed8 }
    .model { fill: #7e22ce } .model-rim { stroke: #7e22ce }
    .release { fill: #0f766e } .release-rim { stroke: #0f766e }
    .arrow { fill: none; stroke: #64748b; stroke-width: 6; stroke-linecap: round }
    .tip { fill: #64748b }
    .night { stroke: #c2410c } .night-tip, .night-text { fill: #c2410c }
    .night-text { font-size: 25px; font-weight: bold }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf6 }
      .frame { fill: #10161f; stroke: #64748b }
      .sub, .note { fill: #b4c0cf }
      .box { fill: #1b2430 }
      .arrow { stroke: #94a3b8 } .tip { fill: #94a3b8 }
      .night { stroke: #fb923c } .night-tip, .night-text { fill: #fb923c }
    }
"""


class Station(NamedTuple):
    """One box of the loop: its cell of the 3 by 3 grid, its words and its colour."""

    column: int
    row: int
    title: str
    notes: tuple[str, ...]
    tool: str
    step: str
    stage: str


STATIONS = (
    Station(0, 0, "Good images", ("versioned",), "DVC", "ingest", "data"),
    Station(1, 0, "Data gate", ("stops bad data",), "Great Expectations", "validate", "data"),
    Station(2, 0, "Frozen features", ("feature store",), "timm, ONNX Runtime", "cache_features", "data"),
    Station(2, 1, "Flow training", ("CS-Flow",), "PyTorch", "train", "model"),
    Station(2, 2, "Threshold", ("stated false-alarm", "rate, and a report"), "MLflow", "evaluate", "model"),
    Station(1, 2, "Registry", ("versions and", "their origin"), "MLflow", "register", "release"),
    Station(0, 2, "Promotion gate", ("champion vs", "challenger"), "MLflow, KServe", "promote", "release"),
    Station(0, 1, "Endpoint", ("score, decision,", "heat-map"), "KServe", "", "release"),
)


def drawing() -> str:
    """Return the SVG document; equal on every machine."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'role="img" aria-labelledby="title description">',
        f'  <title id="title">{escape(TITLE)}</title>',
        f'  <desc id="description">{escape(DESCRIPTION)}</desc>',
        f"  <style>{STYLE}  </style>",
        f'  <rect class="frame" x="2" y="2" width="{WIDTH - 4}" height="{HEIGHT - 4}" rx="24"/>',
        _text("head", WIDTH // 2, 52, "Orchestrated by Kubeflow Pipelines", middle=True),
        _text("sub", WIDTH // 2, 88, "on one machine or a cluster", middle=True),
        *(_arrow(start, end) for start, end in pairwise(STATIONS)),
        _night_arrow(),
        _result(),
        *(_box(station) for station in STATIONS),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _corner(column: int, row: int) -> tuple[int, int]:
    return LEFT + column * (BOX_WIDTH + GAP_X), TOP + row * (BOX_HEIGHT + GAP_Y)


def _text(kind: str, x: int, y: int, words: str, *, middle: bool = False) -> str:
    anchor = ' text-anchor="middle"' if middle else ""
    return f'  <text class="{kind}" x="{x}" y="{y}"{anchor}>{escape(words)}</text>'


def _box(station: Station) -> str:
    x, y = _corner(station.column, station.row)
    centre, foot = x + BOX_WIDTH // 2, y + BOX_HEIGHT - FOOTER
    shape = f'x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="16"'
    lines = [
        f'  <rect class="box" {shape}/>',
        f'  <path class="{station.stage}" d="M{x} {foot}h{BOX_WIDTH}v{FOOTER - 16}a16 16 0 0 1 -16 16'
        f'h-{BOX_WIDTH - 32}a16 16 0 0 1 -16 -16z"/>',
        f'  <rect class="rim {station.stage}-rim" {shape}/>',
    ]
    top = y + (47 if len(station.notes) > 1 else 62)
    lines.append(_text("title", centre, top, station.title, middle=True))
    lines += [
        _text("note", centre, top + 36 + 30 * index, note, middle=True) for index, note in enumerate(station.notes)
    ]
    if station.step:
        lines += [
            _text("tool", centre, foot + 34, station.tool, middle=True),
            _text("step", centre, foot + 64, station.step, middle=True),
        ]
    else:
        lines.append(_text("tool", centre, foot + 49, station.tool, middle=True))
    return "\n".join(lines)


def _arrow(start: Station, end: Station) -> str:
    """Draw the arrow through the gap between two neighbouring boxes."""
    x, y = _corner(start.column, start.row)
    across, down = end.column - start.column, end.row - start.row
    if across:
        x += BOX_WIDTH if across > 0 else 0
        return _straight((x, y + BOX_HEIGHT // 2), (across, 0), GAP_X)
    y += BOX_HEIGHT if down > 0 else 0
    return _straight((x + BOX_WIDTH // 2, y), (0, down), GAP_Y)


def _straight(start: tuple[int, int], way: tuple[int, int], length: int, kind: str = "") -> str:
    """Draw a line of ``length`` pixels along ``way``, with a free end on each side and a tip at its end."""
    (x, y), (dx, dy), free, tip = start, way, 7, 20
    end_x, end_y = x + dx * (length - free), y + dy * (length - free)
    base_x, base_y = end_x - dx * tip, end_y - dy * tip
    line, head = (f"arrow {kind}", f"{kind}-tip") if kind else ("arrow", "tip")
    return (
        f'  <path class="{line}" d="M{x + dx * (free + 3)} {y + dy * (free + 3)}L{base_x} {base_y}"/>\n'
        f'  <path class="{head}" d="M{end_x} {end_y}L{base_x + 13 * dy} {base_y + 13 * dx}'
        f'L{base_x - 13 * dy} {base_y - 13 * dx}z"/>'
    )


def _night_arrow() -> str:
    x, y = _corner(0, 1)
    x += BOX_WIDTH // 2
    return "\n".join(
        [
            _straight((x, y), (0, -1), GAP_Y, "night"),
            _text("night-text", x + 30, y - GAP_Y // 2 + 9, "new images every night"),
        ]
    )


def _result() -> str:
    """Draw what the endpoint answers: a part of woven fabric, a heat-map on it, and a frame around the defect."""
    x, y = _corner(1, 1)
    x += (BOX_WIDTH - BOX_HEIGHT) // 2
    side = BOX_HEIGHT
    frame = f'x="{x + 62}" y="{y + 62}" width="120" height="108"'
    threads = [
        f"M{x + 10 + 21 * column + (8 if row % 2 else 0)} {y + 12 + 14.6 * row:.1f}h9"
        for row in range(14)
        for column in range(10 - row % 2)
    ]
    return "\n".join(
        [
            '  <defs><radialGradient id="heat">',
            '    <stop offset="0" stop-color="#fcffa4"/><stop offset="0.25" stop-color="#fca50a"/>',
            '    <stop offset="0.6" stop-color="#bb3754" stop-opacity="0.9"/>',
            '    <stop offset="1" stop-color="#6a0a64" stop-opacity="0"/>',
            "  </radialGradient></defs>",
            f'  <rect x="{x}" y="{y}" width="{side}" height="{side}" rx="16" fill="#33517a"/>',
            f'  <path d="{"".join(threads)}" stroke="#a9b8cc" stroke-width="5" opacity="0.75"/>',
            f'  <ellipse cx="{x + 122}" cy="{y + 116}" rx="60" ry="54" fill="url(#heat)"/>',
            f'  <rect {frame} fill="none" stroke="#ffffff" stroke-width="5"/>',
            _straight((LEFT + BOX_WIDTH, y + side // 2), (1, 0), GAP_X + (BOX_WIDTH - BOX_HEIGHT) // 2),
        ]
    )


def main() -> None:
    """Write the drawing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=TARGET, help="file to write (default: docs/images/architecture.svg)"
    )
    options = parser.parse_args()
    options.out.write_text(drawing(), encoding="utf-8")
    print(options.out)


if __name__ == "__main__":
    main()
