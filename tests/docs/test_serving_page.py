"""The page on serving in production names the limits, metrics and statuses that the server has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from csflow.adapters.serving import without_arguments

with without_arguments():
    from csflow.adapters.serving import errors, metrics
from csflow.adapters.serving.connections import ConnectionLimits
from csflow.adapters.serving.limits import MEBI, Limits
from csflow.data.image_headers import MAX_RATIO, MAX_SIDE

PAGE = (Path(__file__).parents[2] / "docs/operating/serving.md").read_text()


def rows(heading: str) -> dict[str, list[str]]:
    """Return the table below a heading: the cells of each row by its first."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells[1:]}


def spaced(number: int) -> str:
    return f"{number:,}".replace(",", " ")


LIMITS, CONNECTIONS = Limits(), ConnectionLimits()


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("images of one request", f"{LIMITS.images}"),
        ("bytes of one request, also when unpacked", f"{LIMITS.body_bytes // MEBI} MiB"),
        ("bytes of all requests in memory", f"{LIMITS.bodies_bytes // MEBI} MiB"),
        ("pixels of one image", spaced(LIMITS.pixels)),
        ("sides of one image", f"{spaced(MAX_SIDE)}, and 1 : {spaced(MAX_RATIO)}"),
        ("pixels of all images of one request", spaced(LIMITS.request_pixels)),
        ("memory of all images that are being decoded", f"{LIMITS.decoding_bytes // MEBI} MiB"),
        ("images that wait, in all lines", spaced(LIMITS.waiting_images)),
        ("images that wait in one line", spaced(LIMITS.waiting_images // 2)),
        ("expected wait", f"{LIMITS.waiting_seconds:g} s"),
        ("request line and headers", f"{CONNECTIONS.head_bytes // 1024} KiB, {CONNECTIONS.headers} headers"),
        ("connections", spaced(CONNECTIONS.connections)),
        (
            "time for the headers, between two pieces of a body, for a body",
            f"{CONNECTIONS.head_seconds:g} s, {CONNECTIONS.pause_seconds:g} s, {CONNECTIONS.body_seconds:g} s",
        ),
        ("idle connection", f"{CONNECTIONS.idle_seconds:g} s"),
    ],
)
def test_limits(what: str, value: str) -> None:
    assert rows("Limits")[what] == [value]


def made() -> Iterator[tuple[str, set[str]]]:
    for metric in vars(metrics).values():
        if isinstance(metric, metrics.Counter | metrics.Gauge | metrics.Histogram):
            name = metric._name + ("_total" if isinstance(metric, metrics.Counter) else "")
            yield name, set(metric._labelnames)
    queues = metrics.Queues.__new__(metrics.Queues)
    queues._waiting, queues._bodies, queues._loaded = (lambda: {"tiles": 1}), (lambda: 1), (lambda: ["tiles"])
    for family in queues.collect():
        yield family.name, {label for sample in family.samples for label in sample.labels}


def test_every_metric_is_named_with_its_labels_and_no_other() -> None:
    documented = {
        first.strip("`"): set(re.findall(r"`(\w+)`", labels)) for first, (labels, _) in rows("Metrics").items()
    }
    documented.pop("---", None)
    assert {name: labels for name, labels in documented.items() if name.startswith("csflow")} == dict(made())


def test_every_status_of_an_error_is_named() -> None:
    table = rows("How requests are scored")
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.RequestError) and kind.status != 499:
            codes = table[str(kind.status)][0]
            assert kind.code in codes or not codes, kind
