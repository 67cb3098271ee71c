"""Detectors are replaced, added and taken away while requests are answered: none fails, none gets another's score."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csflow.adapters.serving.lines_file import read_lines
from csflow.adapters.serving.replacing import Replacing
from csflow.adapters.serving.served import ServedDetector
from csflow.config.section import bytes_of
from csflow.detector.engine import Engine
from csflow.errors import ConfigError, CsflowError, UsageError
from csflow.system.files import write_json
from tests.csflow.adapters.serving.command import Command, failed, started

TILES = "/v1/models/tiles:predict"


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (60, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


IMAGE = encoded(1)
BODY = {"instances": [{"image": {"b64": base64.b64encode(IMAGE).decode()}}]}


# ------------------------------------------------------------------------------------------------ parts


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"tiles": {"directory": "a", "version": "7"}}', {"tiles": ("a", "7")}),
        ("tiles: {directory: a, version: 7}\nnuts: {directory: ../b}", {"tiles": ("a", "7"), "nuts": ("../b", "")}),
        ("\ufefftiles:\n  directory: a # comment\n", {"tiles": ("a", "")}),
    ],
)
def test_a_file_of_lines_is_json_or_yaml(tmp_path: Path, text: str, found: Mapping[str, tuple[str, str]]) -> None:
    file = tmp_path / "lines"
    file.write_text(text, encoding="utf-8")
    assert read_lines(file) == {
        name: ServedDetector((tmp_path / directory).resolve(), version) for name, (directory, version) in found.items()
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no lines"),
        ("{}", "names no lines"),
        ("[a]", "names no lines"),
        ("tiles: a", "tiles is no mapping"),
        ("tiles: {version: 7}", "no directory"),
        ("tiles: {directory: }", "no directory"),
        ("tiles: {directory: [a]}", "no directory"),
        ("tiles: {directory: a, versoin: 7}", "versoin"),
        ("tiles: {directory: a, version: 1.5}", "version"),
        ("tiles: {directory: a, version: yes}", "version"),
        ("tiles: {directory: a}\ntiles: {directory: b}", "tiles"),
        ("tiles: {directory: a", "lines"),
    ],
)
def test_a_wrong_file_of_lines_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "lines"
    file.write_text(text)
    with pytest.raises(CsflowError, match=reason):
        read_lines(file)


def test_a_link_that_is_turned_is_a_change(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    link = tmp_path / "current"
    link.symlink_to("one")
    write_json(tmp_path / "lines", {"tiles": {"directory": "current"}})
    before = read_lines(tmp_path / "lines")
    link.unlink()
    link.symlink_to("other")
    assert read_lines(tmp_path / "lines") != before


def test_options_that_exclude_each_other_are_named(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    write_json(file, {"tiles": {"directory": "a"}})
    assert "--model and --lines exclude each other" in failed(f"--lines={file}", "--model=tiles=a")
    assert "--model-dir and --lines exclude each other" in failed(f"--lines={file}", "--model-dir=a")
    assert "Cannot read the lines" in failed(f"--lines={tmp_path / 'none'}")
    assert "800M" in failed(f"--lines={file}", "--max-memory=lots")


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("800M", 800_000_000), ("4Gi", 2**32), ("1.5Ki", 1536), ("2k", 2000), ("0.5G", 500_000_000)],
)
def test_an_amount_of_memory_is_read(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "4 Gi", "4GB", "4gi", "1e9", "500m", "Gi", "4Gi\n", "٤"])
def test_anything_else_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(ConfigError, match="800M"):
        bytes_of(text)


class Recorded:
    """Lines that only write down what they are asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def serve(self, wanted: Mapping[str, ServedDetector]) -> None:
        self.asked.append(sorted(wanted))

    replace = serve


def test_only_a_change_is_acted_on_and_a_failure_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines, wanted = Recorded(), {"tiles": ServedDetector(tmp_path)}
    reasons: list[str] = []

    def asked() -> Mapping[str, ServedDetector]:
        if reasons:
            raise UsageError(reasons[0])
        return wanted

    replacing = Replacing(lines, asked)  # type: ignore[arg-type]
    replacing.start()
    replacing.look()
    replacing.look()
    assert len(lines.asked) == 1
    replacing.look(at_once=True)
    assert len(lines.asked) == 2, "SIGHUP tries again what has failed"
    (tmp_path / "new file").touch()
    replacing.look()
    assert len(lines.asked) == 3, "a detector that was being copied is tried again"
    reasons.append("The file is broken.")
    for _ in range(5):
        replacing.look()
    assert [record.getMessage() for record in caplog.records] == ["The file is broken. What is served stays as it is."]
    reasons.clear()
    replacing.look()
    assert len(lines.asked) == 3
    reasons.append("The file is broken.")
    replacing.look()
    assert len(caplog.records) == 2, "it was well in between"


# ------------------------------------------------------------------------------------------------ the real command


@contextmanager
def asking(server: Command, scores: Mapping[str, float]) -> Iterator[list[str]]:
    """Ask all the time in two threads; every answer must have the score of the version that it names.

    Yields:
        The versions, in the order of the answers.
    """
    seen: list[str] = []
    wrong: list[object] = []
    ended = threading.Event()

    def ask() -> None:
        connection = server.connect()
        while not ended.is_set():
            try:
                connection.request("POST", TILES, json.dumps(BODY))
                response = connection.getresponse()
                answer = json.loads(response.read())
                (found,) = answer["predictions"]
                if response.status != 200 or found["score"] != pytest.approx(scores[found["version"]], rel=1e-5):
                    wrong.append((response.status, answer))
                seen.append(found["version"])
            except Exception as error:  # a dropped connection is a failure too
                wrong.append(error)
                connection.close()
            time.sleep(0.01)
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)
    assert wrong == []


def comes(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def status(server: Command, line: str) -> int:
    return server.ask("GET", f"/v2/models/{line}/ready").status


@pytest.mark.slow
def test_lines_are_switched_added_and_taken_away_under_load(make_detector: Callable[..., Path], tmp_path: Path) -> None:
    first, second, third = (make_detector("tiles", seed=seed) for seed in (0, 1, 2))
    nuts = make_detector("nuts", seed=3)
    picture = Image.open(io.BytesIO(IMAGE))
    scores = {
        version: Engine.load(directory).predict([picture])[0].score
        for version, directory in (("1", first), ("2", second), ("3", third))
    }
    assert len({round(score, 3) for score in scores.values()}) == 3
    file = tmp_path / "lines.json"

    def want(**lines: tuple[Path, str]) -> None:
        write_json(
            file, {name: {"directory": str(path), "version": version} for name, (path, version) in lines.items()}
        )

    want(tiles=(first, "1"))
    with started(tmp_path, f"--lines={file}") as server, asking(server, scores) as seen:
        assert comes(lambda: seen.count("1") > 3)
        # Another version and another line; the file is noticed without a signal.
        want(tiles=(second, "2"), nuts=(nuts, "1"))
        assert comes(lambda: seen[-1] == "2" and status(server, "nuts") == 200)
        # A damaged directory: what is served stays.
        damaged = tmp_path / "damaged"
        shutil.copytree(third, damaged)
        os.truncate(damaged / "model.onnx", 100)
        want(tiles=(damaged, "3"), nuts=(nuts, "1"))
        assert server.logged("The detector before stays.")
        assert comes(lambda: seen[-1] == "2")
        time.sleep(5)
        assert server.log.read_text().count("The detector before stays.") == 1, "it is not tried every two seconds"
        # It is mended in its folder, which is noticed as well.
        shutil.copy(third / "model.onnx", damaged / "model.onnx")
        assert comes(lambda: seen[-1] == "3")
        # A broken file: everything stays, also at a signal.
        file.write_text("{")
        server.process.send_signal(signal.SIGHUP)
        assert server.logged("What is served stays as it is.")
        assert (status(server, "tiles"), status(server, "nuts")) == (200, 200)
        # A line that is taken away is not there any more, and SIGHUP is heard at once.
        want(tiles=(first, "1"))
        server.process.send_signal(signal.SIGHUP)
        assert comes(lambda: status(server, "nuts") == 404)
        assert comes(lambda: seen[-1] == "1")
        assert server.ask("GET", "/v2/models").json == {"models": ["tiles"]}
        log = server.log.read_text()
        assert "Traceback" not in log
    assert set(seen) == {"1", "2", "3"}


@pytest.mark.slow
def test_a_detector_named_on_the_command_line_is_a_link_that_can_be_turned(
    make_detector: Callable[..., Path], tmp_path: Path
) -> None:
    first, second = make_detector("tiles", seed=0), make_detector("tiles", seed=1)
    link = tmp_path / "current"
    link.symlink_to(first)
    with started(tmp_path, "--model", f"tiles={link}") as server:
        before = server.ask("POST", TILES, BODY).json["predictions"][0]
        (tmp_path / "next").symlink_to(second)
        (tmp_path / "next").replace(link)
        server.process.send_signal(signal.SIGHUP)
        assert comes(lambda: server.ask("POST", TILES, BODY).json["predictions"][0] != before)
        # Signals in quick succession, and one while the server ends.
        for _ in range(5):
            server.process.send_signal(signal.SIGHUP)
        with socket.create_connection(("127.0.0.1", server.port)) as half:
            half.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbo")
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            assert server.logged("stopping")
            server.process.send_signal(signal.SIGHUP)
            assert server.process.wait(20) == 0
