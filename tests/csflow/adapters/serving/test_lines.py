"""Detectors are loaded when they are needed, replaced while they are used, and unloaded when memory is bounded."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from csflow.adapters.serving import ServedDetector, without_arguments
from csflow.detector.directory import MODEL
from csflow.detector.engine import Engine
from csflow.errors import ModelError

with without_arguments():
    from csflow.adapters.serving import lines as module
    from csflow.adapters.serving.errors import UnknownLineError
    from csflow.adapters.serving.lines import Line, Lines

GREY = Image.new("RGB", (40, 40), (90, 120, 60))


@pytest.fixture(scope="module")
def directories(make_detector: Callable[..., Path]) -> dict[str, Path]:
    """Two detectors, each under two names."""
    return {name: make_detector("tiles", seed=index % 2) for index, name in enumerate("abcd")}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the lines that are loaded, in their order."""
    noted: list[str] = []
    load = Line.load

    def loaded(name: str, *arguments: Any) -> Line:
        noted.append(name)
        return load(name, *arguments)

    monkeypatch.setattr(Line, "load", loaded)
    return noted


@pytest.fixture
def served(directories: dict[str, Path]) -> dict[str, ServedDetector]:
    return {name: ServedDetector(directory, f"{name}1") for name, directory in directories.items()}


def bytes_for(served: dict[str, ServedDetector], detectors: int) -> int:
    """Memory for this many detectors, as it is estimated, and a little more."""
    return detectors * max(module._bytes_of(each) for each in served.values()) + 1000


def get(lines: Lines, name: str, version: str | None = None) -> Line:
    return asyncio.run(lines.get(name, version))


def test_without_a_bound_all_are_loaded_at_the_start_with_one_trunk(served: dict[str, ServedDetector]) -> None:
    lines = Lines()
    lines.serve(served)
    assert lines.names() == lines.loaded() == ["a", "b", "c", "d"]
    assert len({id(get(lines, name).engine.trunk) for name in served}) == 1


def test_trunks_that_are_opened_at_once_are_opened_once(
    served: dict[str, ServedDetector], monkeypatch: pytest.MonkeyPatch
) -> None:
    from csflow.detector import trunk

    opened: list[object] = []
    original = trunk.open_session

    def slowly(*arguments: Any, **keywords: Any) -> object:
        opened.append(arguments)
        time.sleep(0.2)
        return original(*arguments, **keywords)

    monkeypatch.setattr(trunk, "open_session", slowly)
    monkeypatch.setattr(module, "cores", lambda: 4)
    Lines().serve(served)
    assert len(opened) == 1


def test_the_least_used_is_unloaded_and_loaded_again_on_demand(
    served: dict[str, ServedDetector], loads: list[str]
) -> None:
    lines = Lines(bytes_for(served, 2))
    lines.serve(served)
    assert lines.names() == ["a", "b", "c", "d"]
    assert sorted(loads) == lines.loaded() == ["a", "b"]
    for name in "ab":
        get(lines, name)
    get(lines, "a")
    assert get(lines, "c").version == "c1"
    assert lines.loaded() == ["a", "c"]
    assert len(get(lines, "b").engine.predict([GREY])) == 1
    assert lines.loaded() == ["b", "c"]
    assert loads[2:] == ["c", "b"]


def test_a_bound_below_one_detector_still_serves_one_at_a_time(served: dict[str, ServedDetector]) -> None:
    lines = Lines(1)
    lines.serve(served)
    for name in "abca":
        assert get(lines, name).name == name
        assert lines.loaded() == [name]


def test_an_unloaded_engine_is_freed(served: dict[str, ServedDetector]) -> None:
    import weakref

    lines = Lines(bytes_for(served, 1))
    lines.serve(served)
    engine = weakref.ref(get(lines, "a").engine)
    get(lines, "b")
    assert engine() is None


def test_two_requests_at_once_load_a_line_once(served: dict[str, ServedDetector], loads: list[str]) -> None:
    lines = Lines(bytes_for(served, 1))
    lines.serve(served)

    async def ask() -> list[Line]:
        return list(await asyncio.gather(*(lines.get("b") for _ in range(8))))

    found = asyncio.run(ask())
    assert loads == ["a", "b"]
    assert len({id(line) for line in found}) == 1


def test_lines_that_push_each_other_out_are_all_answered(served: dict[str, ServedDetector]) -> None:
    """Nobody gets nothing because another request unloaded the line just now."""
    lines = Lines(bytes_for(served, 1))
    lines.serve(served)

    async def ask() -> list[Line]:
        return list(await asyncio.gather(*(lines.get(name) for name in "abcd" * 4)))

    assert [line.name for line in asyncio.run(ask())] == list("abcd" * 4)


def test_a_line_that_another_thread_unloads_at_once_is_still_returned(
    served: dict[str, ServedDetector], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines(bytes_for(served, 1))
    lines.serve(served)
    unload = lines._unload_least_used

    def and_this_one(keep: str) -> None:
        unload(keep)
        lines._entries[keep].line = None  # what a thread that loads another line does

    monkeypatch.setattr(lines, "_unload_least_used", and_this_one)
    assert get(lines, "b").name == "b"


def test_a_line_or_version_that_is_not_served_is_named(served: dict[str, ServedDetector]) -> None:
    lines = Lines()
    lines.serve({"a": served["a"]})
    with pytest.raises(UnknownLineError, match="'z' is not served here"):
        get(lines, "z")
    with pytest.raises(UnknownLineError, match="served in version a1, not in '2'"):
        get(lines, "a", "2")
    assert get(lines, "a", "a1") is get(lines, "a", "") is get(lines, "a")


def test_a_directory_without_detector_fails_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        Lines().serve({"a": ServedDetector(tmp_path)})


@pytest.fixture
def broken(directories: dict[str, Path], tmp_path: Path) -> Path:
    """A detector whose weights are damaged."""
    directory = Path(shutil.copytree(directories["b"], tmp_path / "broken"))
    content = bytearray((directory / MODEL).read_bytes())
    content[-50] ^= 0xFF
    (directory / MODEL).write_bytes(content)
    for graph in directory.glob("*.onnx*"):
        graph.write_bytes(graph.read_bytes()[:-100])
    return directory


def test_replacing_switches_adds_and_takes_away(served: dict[str, ServedDetector], loads: list[str]) -> None:
    lines = Lines()
    lines.serve({name: served[name] for name in "ab"})
    before = get(lines, "a")
    lines.replace({"a": served["a"], "b": ServedDetector(served["c"].directory, "b2"), "d": served["d"]})
    assert lines.names() == ["a", "b", "d"]
    assert get(lines, "a") is before
    assert get(lines, "b").version == "b2"
    lines.replace({"d": served["d"]})
    assert lines.names() == lines.loaded() == ["d"]
    with pytest.raises(UnknownLineError):
        get(lines, "a")
    assert sorted(loads) == ["a", "b", "b", "d"]


def test_a_broken_detector_replaces_nothing_and_stops_no_other(
    served: dict[str, ServedDetector], broken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = Lines()
    lines.serve({"a": served["a"], "b": served["b"]})
    before = get(lines, "a")
    with caplog.at_level(logging.INFO, "csflow.serving"):
        lines.replace(
            {
                "a": ServedDetector(broken, "2"),
                "new": ServedDetector(broken),
                "b": ServedDetector(served["c"].directory),
            }
        )
    assert get(lines, "a") is before
    assert before.engine.predict([GREY])
    assert len(get(lines, "b").version) == 12
    assert lines.names() == ["a", "b"]
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [text.split(":")[0] for text in errors] == ["a", "new"]
    assert errors[0].endswith("The detector before stays.")
    assert errors[1].endswith("It is not served.")
    assert not any(record.exc_info for record in caplog.records)


def test_an_unforeseen_failure_of_one_line_stops_no_other(
    served: dict[str, ServedDetector], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines()
    lines.serve({"a": served["a"]})
    load = Line.load

    def fails(name: str, *arguments: Any) -> Line:
        if name == "a":
            raise OSError("the disk is gone")
        return load(name, *arguments)

    monkeypatch.setattr(Line, "load", fails)
    lines.replace({"a": ServedDetector(served["b"].directory, "2"), "c": served["c"]})
    assert (get(lines, "a").version, get(lines, "c").version) == ("a1", "c1")


def test_a_request_in_flight_keeps_its_engine(served: dict[str, ServedDetector]) -> None:
    lines = Lines(bytes_for(served, 1))
    lines.serve({"a": served["a"], "b": served["b"]})
    line = get(lines, "a")
    expected = line.engine.predict([GREY])[0].score
    get(lines, "b")  # unloads a
    lines.replace({"a": ServedDetector(served["b"].directory, "2")})
    assert line.engine.predict([GREY])[0].score == expected
    assert get(lines, "a").engine.predict([GREY])[0].score != expected


@pytest.fixture
def replacing(served: dict[str, ServedDetector]) -> Iterator[Lines]:
    """Lines that are replaced all the time."""
    lines = Lines()
    lines.serve({"a": served["a"]})
    done = threading.Event()
    line = get(lines, "a")

    def replace() -> None:
        turns = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Line, "load", lambda name, *_: Line(name, "1", line.engine))
            while not done.is_set():
                turns += 1
                wanted = {f"{index}-{turns}": ServedDetector(served["a"].directory) for index in range(20)}
                lines.replace({"a": served["a"], **wanted})

    thread = threading.Thread(target=replace)
    thread.start()
    yield lines
    done.set()
    thread.join()


def test_lines_can_be_listed_while_they_are_replaced(replacing: Lines) -> None:
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        assert "a" in replacing.names()
        assert "a" in replacing.loaded()
        get(replacing, "a")


def test_the_engine_of_a_directory_scores_as_by_itself(served: dict[str, ServedDetector]) -> None:
    lines = Lines()
    lines.serve(served)
    for name, detector in served.items():
        alone = Engine.load(detector.directory).predict([GREY])[0].score
        assert get(lines, name).engine.predict([GREY])[0].score == alone
