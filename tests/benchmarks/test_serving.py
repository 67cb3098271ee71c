"""The benchmark of the servers as people run it, at its smallest."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from servers import cli, hostile
from servers.connection import Request
from servers.protocols import packed, request_of, scores_of
from servers.running import free_ports, started
from servers.session import Session, percentile
from servers.settings import QUICK, WORKS, Settings
from servers.work_clients import _spread
from servers.work_departed import SIZE, _counted
from sidebyside.process import WorkerError
from sidebyside.rows import Row, rows_of


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--work", "clients,flying"], "no work flying"),
        (["--protocol", "v3"], "no protocol v3"),
        (["--peer", "0.4"], "expected NAME=CHECKOUT"),
        (["--peer", "0.4=/nowhere"], "no checkout of csflow"),
        (["--images", "/nowhere"], "holds 0 images"),
    ],
)
def test_a_wrong_call_is_explained(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("accuracy", "status"),
    [({"scores": 1e-5}, 0), ({"scores": 1e-2}, 1), ({"spread": 1e-4}, 1), ({"scores of the peer": 1.0}, 0)],
)
def test_a_wrong_answer_fails(
    accuracy: dict[str, float], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(session: Session) -> dict[str, str]:
        session.rows.append(Row("clients", 1.0, "images/s", accuracy=accuracy))
        return {}

    monkeypatch.setattr(cli, "_measure", measure)
    assert cli.main(["--quick"]) == status
    assert ("Wrong result: clients" in capsys.readouterr().err) == bool(status)


def test_settings_survive_the_way_to_another_process(tmp_path: Path) -> None:
    QUICK.save(tmp_path / "settings.json")
    assert Settings.load(tmp_path / "settings.json") == QUICK
    assert tuple(cli.MEASURES) == WORKS


def test_rows_show_the_errors_and_notes_of_both_sides() -> None:
    errors = {"ours": {"scores": 1.0}, "0.4": {"scores of the peer": 2.0}}
    rows = rows_of("work", "ms", {"ours": 1.0, "0.4": 2.0, "plain": 3.0}, errors, {"ours": "1 × 503"})
    assert [(row.peer_name, row.ratio, row.accuracy, row.note) for row in rows] == [
        ("0.4", 2.0, {"scores": 1.0, "scores of the peer": 2.0}, "ours: 1 × 503"),
        ("plain", 3.0, {"scores": 1.0}, "ours: 1 × 503"),
    ]


def test_percentiles_of_few_and_of_many() -> None:
    assert percentile([], 95) == 0.0
    assert percentile([7.0], 95) == 7.0
    assert percentile([float(number) for number in range(101)], 50) == 50.0
    assert percentile([float(number) for number in range(101)], 95) == 95.0


def test_two_answers_about_one_image_are_compared() -> None:
    assert _spread([(0, 2.0, 2.0), (1, 5.0, 5.0), (0, 2.5, 3.0)]) == pytest.approx(0.5)
    assert _spread([(0, 2.0, 2.0), (1, 5.0, 5.0)]) == 0.0


def test_what_was_computed_is_read_from_the_metrics_that_there_are() -> None:
    name = 'csflow_requests_total{model_name="a",outcome="answered"}'
    assert _counted({name: 5.0}, {name: 9.0}) == 3.0, "one of them is the new client's"
    assert _counted({}, {"csflow_images_total": 2.0 * SIZE + 1}) == 2.0
    assert _counted({}, {"python_info": 1.0}) is None


def test_requests_are_read_back() -> None:
    body = json.loads(request_of("v1", "a", [b"xyz"]).body)
    assert body == {"instances": [{"image": {"b64": "eHl6"}}]}
    binary = request_of("v2-binary", "a", [b"xyz", b"1"])
    length = int(binary.headers["Inference-Header-Content-Length"])
    assert json.loads(binary.body[:length])["inputs"][0]["shape"] == [2]
    assert binary.body[length:] == packed([b"xyz", b"1"]) == b"\x03\0\0\0xyz\x01\0\0\x001"
    assert Request("GET", "/x").encoded().startswith(b"GET /x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n")
    answer = b'{"outputs": [{"name": "p_value", "data": [9]}, {"name": "score", "data": [1, 2]}]}'
    assert scores_of("v2", answer) == [1, 2]


def test_hostile_pictures_are_what_they_say(tmp_path: Path) -> None:
    with Image.open(io.BytesIO(hostile.png(300, 200, "RGBA"))) as picture:
        assert (picture.size, picture.mode) == ((300, 200), "RGBA")
        assert picture.getextrema() == ((128, 128), (128, 128), (128, 128), (255, 255))
    requests = hostile.requests(tmp_path / "hostile", QUICK)
    tall = json.loads(requests[0].file.read_bytes())["instances"][0]["image"]["b64"]
    assert len(tall) < 130
    assert len({request.name for request in requests}) == len(requests)
    for request in requests:
        json.loads(request.file.read_bytes())


def test_a_server_that_does_not_start_is_named_with_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no weights')"]
    server = started("broken", command, {}, free_ports(), tmp_path / "log")
    with pytest.raises(WorkerError, match=r"(?s)broken does not answer:.*no weights"), server:
        pass


def test_help_explains_itself() -> None:
    script = Path(cli.__file__).parents[1] / "serving.py"
    found = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True)
    assert "by turns in one run" in found.stdout


@pytest.mark.slow
def test_clients_and_quota_are_measured_and_right(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    assert cli.main(["--quick", "--work", "clients,quota", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    rows = {(row["work"], row["peer_name"]): row for row in result["rows"]}
    for protocol in ("v1", "v2", "v2-binary", "grpc"):
        peer = "plain FastAPI" if protocol == "v1" else None
        rate = rows[f"clients ({protocol}, 4): rate", peer]
        assert rate["ours"] > 0
        assert rate["accuracy"]["scores"] < 1e-3
        assert rows[f"clients ({protocol}, 4): processor time an image", peer]["ours"] > 0
    spread = rows["clients (one image, all answers): largest difference", "plain FastAPI"]
    assert spread["accuracy"]["spread"] <= 1e-5
    assert "one CPU" in result["machine"]["one_cpu"] or "one core" in result["machine"]["one_cpu"]
    assert all(math.isfinite(row["ours"]) for row in result["rows"])
    assert str(tmp_path) not in file.read_text()
    assert os.fspath(Path.home()) not in file.read_text()


@pytest.mark.slow
def test_starved_and_departed_clients_are_measured(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    assert cli.main(["--quick", "--work", "starvation,departed", "--without-plain", "--json", str(file)]) == 0
    rows = {row["work"]: row for row in json.loads(file.read_text())["rows"]}
    assert rows["starvation (single images while 4 × 8 on another line): p50"]["ours"] > 0
    assert rows["starvation (single images alone): p50"]["accuracy"]["scores"] < 1e-3
    assert rows["departed (8 clients): until a new client is answered"]["ours"] > 0
    assert 0 <= rows["departed (8 clients): of them computed, by /metrics"]["ours"] <= 8
