"""Runs asked for by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from csflow.config import DataConfig, FeatureConfig, LineConfig, ResourcesConfig, ScheduleConfig
from csflow.errors import UsageError
from pipelines.api import NoServerError
from pipelines.server import Server
from pipelines.submission import parameters_of, require_reachable, submit_run, wait
from tests.pipelines.kfp_server import Fault, KfpServer

pytestmark = pytest.mark.filterwarnings("ignore")
REPO = "https://git.example/data.git"


def line(repo: str = REPO, **rest: Any) -> LineConfig:
    return LineConfig(line="tiles", data=DataConfig(repo=repo, path="data"), **rest)


@pytest.mark.parametrize(
    "repo", [REPO, "git@git.example:data.git", "ssh://git.example/data", "/var/lib/csflow/repos/tiles"]
)
def test_data_that_pods_reach(repo: str) -> None:
    require_reachable(line(repo))


@pytest.mark.parametrize("repo", ["/home/me/data", "file:///home/me/data", "/var/lib/csflow/../me", "/var/lib/csflowx"])
def test_data_of_this_machine_is_refused_with_what_to_do(repo: str) -> None:
    with pytest.raises(UsageError, match=r"data.repo of tiles is .*dvc push.*/var/lib/csflow"):
        require_reachable(line(repo))


def test_weights_of_this_machine_are_refused_too() -> None:
    require_reachable(line(features=FeatureConfig(weights="s3://bucket/trunk.safetensors")))
    require_reachable(line(features=FeatureConfig(weights="/var/lib/csflow/trunk.safetensors")))
    with pytest.raises(UsageError, match="features.weights of tiles is trunk.safetensors"):
        require_reachable(line(features=FeatureConfig(weights="trunk.safetensors")))


def test_what_the_pipeline_is_given() -> None:
    config = line(schedule=ScheduleConfig(cron="0 3 * * *"), resources=ResourcesConfig(shards=4))
    given = parameters_of(config)
    assert (given["force"], given["shards"]) == (False, 4)
    assert json.loads(given["line"])["schedule"] is None
    assert parameters_of(config, force=True, shards=2) | {"line": ""} == {"line": "", "force": True, "shards": 2}


def test_a_submitted_run_refers_to_the_uploaded_pipeline(kfp: KfpServer) -> None:
    run = submit_run(Server(kfp.url), line(), shards=3)
    made = kfp.runs[run.id]
    (documents,) = kfp.packages.values()
    assert len(documents) == 2, "what only Kubernetes understands goes along"
    assert made["pipeline_version_reference"]["pipeline_version_id"] in kfp.packages
    assert made["runtime_config"]["parameters"]["shards"] == 3
    again = submit_run(Server(kfp.url), line(), shards=3)
    assert again.name != run.name
    assert len(kfp.versions) == 1
    assert len(kfp.runs) == 2


def test_waiting_tells_every_state_and_outlives_a_restart_of_the_server(kfp: KfpServer) -> None:
    server = Server(kfp.url, pause=0.001)
    run = submit_run(server, line())
    kfp.states = ["PENDING", "RUNNING", "RUNNING", "SUCCEEDED"]
    kfp.faults.append(Fault("GET", "runs/", 503, times=9))
    told: list[str] = []
    assert wait(server, run, say=told.append, every=0.01).state == "SUCCEEDED"
    assert [text.rpartition(": ")[2] for text in told] == ["pending", "running", "succeeded"]


def test_waiting_ends_when_the_server_stays_away(kfp: KfpServer) -> None:
    server = Server(kfp.url, pause=0.001)
    run = submit_run(server, line())
    kfp.faults.append(Fault("GET", "runs/", 503, times=999))
    with pytest.raises(NoServerError):
        wait(server, run, say=lambda text: None, every=0.01, patience=0.1)
