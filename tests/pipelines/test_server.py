"""The client of Kubeflow Pipelines against a server that speaks its API over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from csflow.config import ScheduleConfig
from csflow.errors import UsageError
from csflow.system.ports import free_port
from pipelines.api import ConflictError, DeniedError, MissingError, NoServerError, ServerError
from pipelines.cron import clock_of
from pipelines.package import Package
from pipelines.schedules import Wanted
from pipelines.server import PipelineVersion, Server
from tests.pipelines.kfp_server import Contract, Fault, KfpServer, description, running

NOW = datetime(2026, 6, 1, tzinfo=UTC)
PACKAGE = Package("csflow-retrain", "pipelineInfo: {name: csflow-retrain}\n---\nplatforms: {}\n")


def connect(kfp: KfpServer, **rest: object) -> Server:
    return Server(kfp.url, pause=0.01, **rest)  # type: ignore[arg-type]


def wanted(line: str = "tiles", cron: str = "0 3 * * *") -> Wanted:
    return Wanted(line, clock_of(ScheduleConfig(cron=cron), NOW), "v", {"line": "{}", "force": False, "shards": 1})


def test_a_package_is_uploaded_once_and_found_by_its_content(kfp: KfpServer) -> None:
    server = connect(kfp)
    first = server.version_of(PACKAGE)
    assert server.version_of(PACKAGE) == first
    others = [server.version_of(Package(PACKAGE.name, f"{PACKAGE.text}# {n}\n")) for n in range(4)]
    assert len({first, *others}) == 5
    assert server.version_of(PACKAGE) == first, "it is on the last page"
    assert len(kfp.pipelines) == 1
    assert next(each["name"] for each in kfp.versions.values()) == PACKAGE.version
    assert kfp.packages[first.version] == [{"pipelineInfo": {"name": "csflow-retrain"}}, {"platforms": {}}]
    assert kfp.requests.count("POST /apis/v2beta1/pipelines/upload_version") == 5


def test_runs_of_a_line_are_kept_together_newest_first(kfp: KfpServer) -> None:
    server = connect(kfp)
    version = server.version_of(PACKAGE)
    assert server.last_run("tiles") is None
    for number in range(3):
        server.start("tiles", f"run-{number}", version, {"line": "{}", "force": False, "shards": 1}, account="trainer")
    server.start("bolts", "other", version, {"line": "{}"})
    last = server.last_run("tiles")
    assert last is not None
    assert (last.name, last.state, last.created and last.created.tzinfo is not None) == ("run-2", "PENDING", True)
    assert {each["display_name"] for each in kfp.experiments.values()} == {"csflow-tiles", "csflow-bolts"}
    made = next(iter(kfp.runs.values()))
    assert made["service_account"] == "trainer"
    assert made["runtime_config"]["parameters"] == {"line": "{}", "force": False, "shards": 1}


def test_recurring_runs_are_ours_if_name_and_note_say_so(kfp: KfpServer) -> None:
    server = connect(kfp)
    version = server.version_of(PACKAGE)
    ids = [server.create_recurring(wanted(f"line-{n}"), version, enabled=n != 1) for n in range(5)]
    foreign = next(iter(kfp.recurring.values())) | {"recurring_run_id": "id-x", "description": "by hand"}
    kfp.recurring["id-x"] = foreign
    found = server.recurring_runs()
    assert [(each.line, each.enabled) for each in found] == [(f"line-{n}", n != 1) for n in range(5)]
    assert [each.id for each in found] == ids
    assert {each.cron for each in found} == {"0 0 3 * * *"}
    made = kfp.recurring[ids[0]]
    assert (made["max_concurrency"], made["no_catchup"]) == ("1", True)
    server.disable(ids[0])
    server.enable(ids[1])
    server.delete(ids[2])
    server.delete(ids[2])
    after = {each.line: each.enabled for each in server.recurring_runs()}
    assert after == {"line-0": False, "line-1": True, "line-3": True, "line-4": True}


@pytest.mark.parametrize("status", [500, 502, 503, 429, 0])
def test_what_passes_is_tried_again(kfp: KfpServer, status: int) -> None:
    server = connect(kfp)
    version = server.version_of(PACKAGE)
    kfp.faults.append(Fault("GET", "experiments", status, times=2))
    kfp.faults.append(Fault("POST", "runs$", status, times=2))
    server.start("tiles", "run", version, {})
    assert [each["display_name"] for each in kfp.runs.values()] == ["run"]
    assert kfp.faults == []


@pytest.mark.parametrize("path", ["pipelines$", "upload_version", "experiments", "v2beta1/runs", "recurringruns"])
@pytest.mark.parametrize("status", [504, 0])
def test_a_lost_answer_creates_nothing_twice(kfp: KfpServer, path: str, status: int) -> None:
    server = connect(kfp)
    kfp.faults.append(Fault("POST", path, status, after=True))
    version = server.version_of(PACKAGE)
    server.start("tiles", "run", version, {})
    server.create_recurring(wanted(), version, enabled=True)
    assert kfp.faults == []
    kinds = (kfp.pipelines, kfp.versions, kfp.experiments, kfp.runs, kfp.recurring)
    assert [len(kind) for kind in kinds] == [1, 1, 1, 1, 1]


def test_somebody_elses_equal_upload_in_the_same_moment_is_used(kfp: KfpServer) -> None:
    server = connect(kfp)
    first = server.version_of(PACKAGE)
    # The version is not on the list yet when it is looked for, but there when it is to be made.
    hidden = kfp.versions.pop(first.version)
    original = kfp._upload

    def faster(query: dict[str, str], body: object) -> dict[str, object]:
        kfp.versions[first.version] = hidden
        return original(query, body)

    kfp._upload = faster  # type: ignore[method-assign]
    assert server.version_of(PACKAGE) == first


def test_errors_say_what_to_do(kfp: KfpServer) -> None:
    server = connect(kfp)
    with pytest.raises(MissingError, match="answered 404: id-9 not found"):
        server.read_run("id-9")
    with pytest.raises(MissingError, match="404"):
        server.create_recurring(wanted(), PipelineVersion("gone", "gone"), enabled=True)
    for status, kind, words in (
        (409, ConflictError, "run this again"),
        (403, DeniedError, "KF_PIPELINES_SA_TOKEN_PATH"),
        (302, DeniedError, "sign-in"),
        (400, ServerError, "version 2.4"),
        (503, NoServerError, "ml-pipeline"),
    ):
        kfp.faults = [Fault("POST", "experiments", status, times=9, message="because")]
        with pytest.raises(kind, match=f"answered {status}: because.*{words}"):
            server.start("bolts", "run", PipelineVersion("p", "v"), {})
    assert not kfp.runs


def test_no_server_is_said_with_the_variable_to_correct(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoServerError, match="No Kubeflow Pipelines server answers.*CSFLOW_KFP_URL"):
        Server(f"http://127.0.0.1:{free_port('127.0.0.1')}", pause=0.01).last_run("tiles")
    monkeypatch.delenv("CSFLOW_KFP_URL", raising=False)
    with pytest.raises(NoServerError, match="CSFLOW_KFP_URL is not set"):
        Server.from_environment()
    monkeypatch.setenv("CSFLOW_KFP_URL", "kfp.example:8888")
    with pytest.raises(UsageError, match="http://"):
        Server.from_environment()


def test_a_token_is_read_afresh_for_every_request(
    kfp: KfpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kfp.token = "testing"
    with pytest.raises(DeniedError, match="401: no valid token"):
        connect(kfp).last_run("tiles")
    file = tmp_path / "token"
    file.write_text("testing\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    server = Server.from_environment()
    assert server.last_run("tiles") is None
    kfp.token = "renewed"
    file.write_text("renewed\n")
    assert server.last_run("tiles") is None
    file.unlink()
    with pytest.raises(DeniedError, match="cannot be read"):
        server.last_run("tiles")


def test_a_server_of_several_users_keeps_ours_in_our_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSFLOW_NAMESPACE", "factory")
    with running(multi_user=True) as kfp:
        server = connect(kfp)
        version = server.version_of(PACKAGE)
        server.create_recurring(wanted(), version, enabled=True)
        assert [each["namespace"] for each in kfp.experiments.values()] == ["factory"]
        assert [each["namespace"] for each in kfp.pipelines.values()] == ["factory"]
        assert len(server.recurring_runs()) == 1
    assert kfp.violations == []


def test_a_page_instead_of_json_is_no_answer(kfp: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kfp, "handle", lambda *_: (200, "<html>Please sign in</html>"))
    with pytest.raises(ServerError, match="not of Kubeflow Pipelines.*sign-in"):
        connect(kfp).last_run("tiles")


def test_the_description_is_enforced() -> None:
    swagger = description()
    if swagger is None:
        pytest.skip("needs kfp_api_v2beta1.swagger.json: set CSFLOW_SCHEMAS to the folder that holds it")
    contract = Contract(swagger)
    base = "/apis/v2beta1"
    assert contract.wrong_request("GET", f"{base}/runs", {"page_size": "1"}, None) == []
    assert contract.wrong_request("GET", f"{base}/runs", {"pagesize": "1"}, None)
    assert contract.wrong_request("GET", f"{base}/nothing", {}, None)
    assert contract.wrong_request("POST", f"{base}/recurringruns", {}, {"max_concurrency": 1})
    assert contract.wrong_request("POST", f"{base}/recurringruns", {}, {"mode": "ENABLED"})
    assert contract.wrong_request("POST", f"{base}/recurringruns", {}, {"trigger": {"cron_schedule": {"cronn": ""}}})
    assert contract.wrong_answer("GET", f"{base}/runs", 200, {"runs": [{"state": "DONE"}]})
    assert contract.wrong_answer("GET", f"{base}/runs", 404, {"message": 5})
