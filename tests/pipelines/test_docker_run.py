"""The run in containers: what a step is given, and the demo line with a real engine."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from csflow.adapters.deployment.local import LocalEndpoints
from csflow.adapters.versioning import create_data_repository
from csflow.adapters.versioning.git import git
from csflow.config import DataConfig, FeatureConfig, LineConfig
from csflow.errors import DataError, UsageError
from csflow.runs.services import Services
from csflow.system.workspace import Workspace
from pipelines import containers
from pipelines.local import run_locally
from pipelines.mounts import Place, passed_environment, places
from tests.docker_images import revision_of

ROOT = Path(__file__).resolve().parents[2]


# --- what needs no engine -------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path / "home")
    (made.runs / "now").mkdir(parents=True)
    return made


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("factory") / "images"
    create_data_repository(folder)
    return folder


def mounted(line: LineConfig, workspace: Workspace, environment: dict[str, str] | None = None) -> dict[Path, Place]:
    found = places(line, workspace, workspace.runs / "now", environment or {})
    assert len({place.target for place in found}) == len(found), "a target can be mounted once"
    assert all(place.source.exists() for place in found), "the engine would make what is missing, as root"
    return {place.target: place for place in found}


def line_of(repository: Path, **more: Any) -> LineConfig:
    return LineConfig(line="plates", data=DataConfig(repo=str(repository), path="data"), **more)


def test_workspace_is_written_and_the_data_repository_read(workspace: Workspace, repository: Path) -> None:
    remote = repository.parent / "images-remote"
    remote.mkdir(exist_ok=True)
    found = mounted(line_of(repository), workspace)
    assert found[workspace.root] == Place(workspace.root, workspace.root, writable=True)
    assert not found[repository].writable
    assert not found[remote].writable
    assert found[repository / ".dvc" / "cache"].writable, "DVC keeps there what it fetches"


def test_a_worktree_brings_the_history_it_refers_to(workspace: Workspace, repository: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    git("worktree", "add", "--quiet", "--detach", str(tree), repository=repository)
    assert not mounted(line_of(tree), workspace)[repository / ".git"].writable


def test_a_step_sees_endpoints_of_its_own_and_the_common_lock(workspace: Workspace, repository: Path) -> None:
    found = mounted(line_of(repository), workspace)
    assert found[workspace.endpoints].source == workspace.runs / "now" / "endpoints"
    lock = workspace.endpoints / ".plates.lock"
    assert found[lock] == Place(lock, lock, writable=True)
    assert workspace.endpoints not in mounted(line_of(repository), workspace, {"CSFLOW_ENDPOINTS": "kubernetes"})


def test_files_that_variables_and_the_line_name_are_there(
    workspace: Workspace, repository: Path, tmp_path: Path
) -> None:
    bundle, weights, folder = tmp_path / "ca.pem", tmp_path / "trunk.safetensors", tmp_path / "tracking"
    bundle.touch()
    weights.touch()
    folder.mkdir()
    environment = {"AWS_CA_BUNDLE": str(bundle), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    found = mounted(line_of(repository, features=FeatureConfig(weights=str(weights))), workspace, environment)
    assert not found[bundle].writable
    assert not found[weights].writable
    assert found[folder].writable, "SQLite writes a journal beside the database"


def test_a_remote_data_repository_needs_no_mount(workspace: Workspace) -> None:
    line = LineConfig(line="plates", data=DataConfig(repo="https://git.example/plates.git", path="data"))
    assert [place.target for place in places(line, workspace, workspace.runs / "now", {})] == [
        workspace.root,
        workspace.endpoints,
        workspace.endpoints / ".plates.lock",
        workspace.endpoints / "plates.log",
    ]


def test_a_missing_data_repository_is_named(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        places(line_of(tmp_path / "none"), workspace, workspace.runs / "now", {})


def test_a_step_gets_what_configures_it_and_no_more() -> None:
    told = {"CSFLOW_HOME": "/h", "AWS_ACCESS_KEY_ID": "testing", "MLFLOW_TRACKING_URI": "http://m", "HTTPS_PROXY": "p"}
    own = {
        "PATH": "/usr/bin",
        "HOME": "/root",
        "PYTHONPATH": "x",
        "CSFLOW_LINES": "/lines",
        "CSFLOW_PROJECT": "/p",
        "SECRET": "s",
    }
    assert passed_environment(told | own) == told


def test_a_step_has_no_rights_it_does_not_need() -> None:
    given = containers.confinement({"SecurityOptions": ["name=seccomp,profile=default"]})
    assert given["user"] == f"{os.getuid()}:{os.getgid()}"
    assert given["read_only"] is True
    assert "no-new-privileges" in given["security_opt"]
    assert containers.confinement({"SecurityOptions": ["name=rootless"]})["user"] == "0:0", "which is the caller there"


def test_accelerators_are_asked_for_where_the_engine_has_them() -> None:
    assert containers.accelerators({"Runtimes": {"runc": {}}}) == []
    (request,) = containers.accelerators({"Runtimes": {"runc": {}, "nvidia": {}}})
    assert request["Count"] == -1


def test_without_engine_nothing_runs(
    workspace: Workspace, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with pytest.raises(UsageError, match="make images"):
        run_locally(line_of(repository), force=False, services=Services.of(workspace), runner="docker")
    assert [folder.name for folder in workspace.runs.iterdir()] == ["now"], "no run was begun"


def test_the_image_has_the_version_of_the_project() -> None:
    from importlib.metadata import version

    environment = {key: value for key, value in os.environ.items() if key != "CSFLOW_IMAGE"}
    code = "from components.image import BASE_IMAGE; print(BASE_IMAGE)"
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == f"csflow-train:{version('csflow')}"


# --- with a real engine ---------------------------------------------------------------------------------------------

YAML = """
line: demo-texture
data: {repo: REPO, rev: HEAD, path: data/demo-texture}
features: {image_size: 128}
flow: {blocks: 2, hidden: 16}
training: {epochs: 3, batch_size: 8, learning_rate: 1.0e-3, checkpoint_seconds: 0.1}
roles: {calibrate: 0.25, gate: 0.15}
calibration: {alpha: 0.1}
quality: {min_train: 60}
"""


@pytest.fixture(scope="module")
def image() -> str:
    """The image of the steps; skipped where there is no engine, or it was not built from this commit."""
    try:
        found = containers.check_engine()
    except UsageError as error:
        pytest.skip(str(error))
    build = runpy.run_path(str(ROOT / "infra" / "images" / "build.py"))
    if revision_of(found) != (build["revision"]() or "unknown"):
        pytest.skip(f"needs the image {found} of this commit: make images")
    return found


def run(home: Path, yaml: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines", "run", str(yaml), *words]
    return subprocess.run(command, cwd=ROOT, env=environment_of(home), capture_output=True, text=True, check=False)


def environment_of(home: Path) -> dict[str, str]:
    return os.environ | {"CSFLOW_HOME": str(home), "DVC_NO_ANALYTICS": "1"}


def summary_of(home: Path) -> dict[str, Any]:
    return json.loads((home / "summary.json").read_text())  # type: ignore[no-any-return]


def write_yaml(folder: Path, old: str = "", new: str = "") -> Path:
    path = folder / "demo-texture.yaml"
    path.write_text(YAML.replace("REPO", str(ROOT)).replace(old, new))
    return path


def left_over() -> list[str]:
    import docker

    with closing(docker.from_env()) as client:
        found = client.containers.list(all=True, filters={"label": containers.LABEL})
    return [container.labels[containers.LABEL] for container in found]


@pytest.fixture(scope="module")
def home(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace in which the demo line ran in containers; ``test_profiles_agree.py`` compares what came out."""
    yaml, made = write_yaml(tmp_path_factory.mktemp("lines")), tmp_path_factory.mktemp("docker")
    try:
        done = run(made, yaml, "--runner", "docker")
        assert done.returncode == 0, done.stdout + done.stderr
        (made / "shown.txt").write_text(done.stdout + done.stderr)
        yield made
    finally:
        LocalEndpoints(Workspace(made)).stop("demo-texture")


@pytest.mark.docker
@pytest.mark.timeout(1200)
def test_progress_is_shown_and_the_champion_served_after_the_containers_ended(home: Path) -> None:
    shown = (home / "shown.txt").read_text()
    assert "train: epoch 3/3" in shown
    assert "serve: champion version 1" in shown
    endpoint = LocalEndpoints(Workspace(home)).status("demo-texture")
    assert endpoint is not None
    assert endpoint.url == summary_of(home)["endpoint"]
    picture = next((ROOT / "docs" / "images").glob("*.png")).read_bytes()
    (answer,) = LocalEndpoints(Workspace(home)).score(endpoint, [picture])
    assert answer["version"] == "1"
    assert not [root for root in left_over() if root.startswith(str(home))]
    assert {path.stat().st_uid for path in home.rglob("*")} == {os.getuid()}, "a file belongs to somebody else"


@pytest.mark.docker
@pytest.mark.timeout(1200)
def test_an_unchanged_run_leaves_the_endpoint_alone(home: Path, tmp_path: Path) -> None:
    before = summary_of(home)
    done = run(home, write_yaml(tmp_path), "--runner", "docker")
    assert done.returncode == 0, done.stdout + done.stderr
    after = summary_of(home)
    assert (after["outcome"], after["endpoint"]) == ("unchanged", before["endpoint"])


@pytest.mark.docker
@pytest.mark.timeout(600)
def test_a_failing_step_has_the_last_word(image: str, tmp_path: Path) -> None:
    done = run(tmp_path / "home", write_yaml(tmp_path, "min_train: 60", "min_train: 500"), "--runner", "docker")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Step validate failed" in done.stderr
    assert "500" in done.stderr.strip().splitlines()[-1]
    assert "cache_features" not in done.stdout + done.stderr, "nothing runs after a failed step"


@pytest.mark.docker
@pytest.mark.timeout(600)
def test_a_terminated_run_leaves_no_container_and_a_checkpoint(image: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = [sys.executable, "-m", "pipelines", "run", str(write_yaml(tmp_path, "epochs: 3", "epochs: 2000"))]
    with subprocess.Popen(
        [*command, "--runner", "docker"], cwd=ROOT, env=environment_of(home), stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        assert next((line for line in running.stderr if "epoch 5/2000" in line), None), "training never began"
        assert [root for root in left_over() if root.startswith(str(home))], "no container trains"
        running.send_signal(signal.SIGTERM)
        running.stderr.read()
        assert running.wait(timeout=containers.GRACE_SECONDS) != 0
    assert not [root for root in left_over() if root.startswith(str(home))]
    assert list((home / "models").glob("*.work/checkpoint*")), "no checkpoint was written"


@pytest.mark.docker
@pytest.mark.timeout(120)
@pytest.mark.parametrize("status", [0, 3])
def test_the_exit_status_of_a_container_is_never_lost(
    image: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    import docker

    with closing(docker.from_env()) as client:
        for _ in range(5):  # kfp's own way of asking is a race
            command = ["sh", "-c", f"printf 'größe\\n%s' end; exit {status}"]
            assert containers.run_step(client, image, command, {}, **containers.confinement({})) == status
            assert capsys.readouterr().out == "größe\nend\n"


def test_kfp_still_runs_its_containers_through_the_function_that_is_replaced(tmp_path: Path) -> None:
    import inspect

    from kfp.local import docker_task_handler

    assert "run_docker_container(" in inspect.getsource(docker_task_handler.DockerTaskHandler.run)
    original = docker_task_handler.run_docker_container
    with containers.followed(tmp_path):
        assert docker_task_handler.run_docker_container is containers.run_step
    assert docker_task_handler.run_docker_container is original
