"""The images: what the build is told, and what the real ones hold, allow and answer."""

from __future__ import annotations

import base64
import http.client
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from csflow.adapters.serving import without_arguments
from csflow.adapters.serving.__main__ import main as serve_main
from tests.docker_images import revision_of

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "images"
NAMES = ("csflow-train", "csflow-serve")
HOST = "127.0.0.1"


def load_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_images", FOLDER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()


# --- what needs no engine -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_dependencies_come_before_code_and_users_and_arguments_are_safe(name: str) -> None:
    first, final = (FOLDER / f"{name}.Dockerfile").read_text().split("\nFROM ")[1:]
    assert first.index("requirements/") < first.index("COPY csflow/")
    assert final.index("/opt/csflow /opt/csflow") < final.index("/app /app")
    assert re.search(r"^USER \d+:\d+$", final, re.MULTILINE), "Kubernetes can only tell that a number is not root"
    assert "INDEX_URL" not in final, "an index may carry a password"
    assert "ca/" not in final
    assert final.index("ARG REVISION") > final.index("/app /app"), "a new commit must not build layers again"


def test_an_index_password_is_not_shown() -> None:
    assert build.shown("https://me:secret@index.example/simple") == "https://index.example/simple"


def test_arguments_left_out_are_not_given_empty() -> None:
    given = build.build_arguments("base:1", "", "")
    assert "--build-arg=BASE_IMAGE=base:1" in given
    assert not any("INDEX_URL" in word or "CA_BUNDLE" in word for word in given)


def test_an_index_that_no_build_can_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "file:///somewhere/simple")
    with pytest.raises(build.BuildError, match="INDEX_URL="):
        build.index_url("")
    assert build.index_url("https://index.example/simple") == "https://index.example/simple"


def test_the_context_holds_what_is_needed_and_certificates_never_lie_in_the_project(tmp_path: Path) -> None:
    bundle = tmp_path / "factory.pem"
    bundle.write_text("certificates")
    with build.build_context(str(bundle)) as context:
        assert (context / build.BUNDLE).read_text() == "certificates"
        names = {path.relative_to(context).parts[0] for path in context.rglob("*") if path.is_file()}
        for name in NAMES:
            copied = re.findall(r"^COPY (?!--from)(\S+) ", (FOLDER / f"{name}.Dockerfile").read_text(), re.MULTILINE)
            assert all((context / source).exists() for source in copied)
        assert names <= {source.split("/")[0] for source in build.CONTEXT}
        allowed = (ROOT / ".dockerignore").read_text()
        assert all(f"!{name.rstrip('/')}" in allowed for name in names), "`docker build .` sees the same"
    assert not (ROOT / build.BUNDLE).exists()
    with pytest.raises(build.BuildError, match=r"missing\.pem"), build.build_context(str(tmp_path / "missing.pem")):
        pass


def test_without_engine_the_build_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
    assert build.main([]) == 1
    assert re.search("Docker is not installed|No Docker engine answers", capsys.readouterr().err)


def base_script(path: str, *words: str) -> subprocess.CompletedProcess[str]:
    bash = shutil.which("bash")
    assert bash is not None
    command = [bash, str(FOLDER / "base.sh"), *words]
    return subprocess.run(command, env={"PATH": path}, capture_output=True, text=True, check=False)


def test_the_base_script_names_what_is_missing(tmp_path: Path) -> None:
    assert "Docker is not installed" in base_script(str(tmp_path)).stderr
    (tmp_path / "docker").symlink_to("/bin/true")
    lacking = base_script(str(tmp_path))
    assert lacking.returncode == 1
    assert "apt-get install mmdebstrap" in lacking.stderr
    assert "unknown option --wrong" in base_script(os.environ["PATH"], "--wrong").stderr
    assert "--mirror URL" in base_script(os.environ["PATH"], "--help").stdout


def test_the_server_understands_what_kserve_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_main(["--model_name=tiles", f"--model_dir={tmp_path}", "--http_port=0"]) == 1
    assert "config.json names no line" in capsys.readouterr().err
    assert serve_main(["--model=a=b", "--model-name=tiles"]) == 2
    assert "--model-name and --model exclude each other" in capsys.readouterr().err
    assert serve_main(["--version=a=1"]) == 2
    assert "--model-version" in capsys.readouterr().err


# --- the real images ------------------------------------------------------------------------------------------------


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def images() -> dict[str, str]:
    """Both images; skipped where there is no engine, or they were not built from this commit."""
    try:
        build.check_engine()
    except build.BuildError as error:
        pytest.skip(f"needs a Docker engine: {error}")
    tags = {name: f"{name}:{build.project_version()}" for name in NAMES}
    for tag in tags.values():
        if revision_of(tag) != (build.revision() or "unknown"):
            pytest.skip(f"needs the image {tag} of this commit: make images")
    return tags


def inspect(image: str) -> dict[str, Any]:
    (found,) = json.loads(docker("image", "inspect", image))
    return found  # type: ignore[no-any-return]


def inside(image: str, *command: str) -> str:
    """What a command prints in a container as a cluster starts it: no rights, nothing to write to but /tmp."""
    return docker("run", *build.LOCKED_DOWN, f"--entrypoint={command[0]}", image, *command[1:])


def inside_as_root(image: str, *command: str) -> str:
    """The same, where a user without rights would not see every folder."""
    return docker("run", *build.LOCKED_DOWN, "--user=0", f"--entrypoint={command[0]}", image, *command[1:])


@pytest.mark.docker
@pytest.mark.parametrize("name", NAMES)
def test_labels_and_user(images: dict[str, str], name: str) -> None:
    config = inspect(images[name])["Config"]
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert labels["title"] == name
    assert labels["version"] == build.project_version()
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", labels["revision"])
    assert config["User"] == "10001:10001"
    assert inside(images[name], "id", "-u").strip() == "10001"
    assert inside(
        images[name], "python", "-c", "import importlib.metadata as m; print(m.version('csflow'))"
    ).strip() == (build.project_version())


LEFTOVERS = """
import pathlib, shutil, sys
tools = ["gcc", "g++", "cc", "c++", "clang", "ld", "as", "make", "cmake", "nvcc", "pip", "pip3", "uv", "conda"]
places = "/opt/csflow/bin:/app/site/bin:/usr/local/bin:/usr/bin:/bin"
found = [tool for tool in tools if shutil.which(tool, path=places)]
folders = [".cache/pip", ".cache/uv", "root/.cache", "tools", "ca", "src", "install.sh", "usr/share/python-wheels"]
found += [name for name in folders if pathlib.Path("/", name).exists()]
found += [str(path) for pattern in ("**/*.a", "**/pip/__init__.py") for path in pathlib.Path("/opt").glob(pattern)]
found += [str(path) for path in pathlib.Path("/var/lib/apt/lists").glob("*Packages*")]
print(found)
"""


@pytest.mark.docker
@pytest.mark.parametrize("name", NAMES)
def test_no_compiler_installer_or_cache_is_left(images: dict[str, str], name: str) -> None:
    assert inside_as_root(images[name], "python", "-c", LEFTOVERS).strip() == "[]"
    told = docker("history", "--no-trunc", "--format={{.CreatedBy}}", images[name])
    assert "INDEX_URL=" not in told
    assert "CA_BUNDLE=" not in told


@pytest.mark.docker
def test_the_serving_image_holds_nothing_that_trains(images: dict[str, str]) -> None:
    names = ("torch", "timm", "torchvision", "mlflow", "kfp", "dvc", "great_expectations", "boto3", "sklearn", "docker")
    code = f"import importlib.util as u; print([n for n in {names!r} if u.find_spec(n)])"
    assert inside(images["csflow-serve"], "python", "-c", code).strip() == "[]"


@pytest.mark.docker
def test_the_training_image_has_all_that_steps_need(images: dict[str, str]) -> None:
    image = images["csflow-train"]
    code = "import csflow.detector.detector, kfp, mlflow, dvc.api, great_expectations, torch; print(torch.version.cuda)"
    assert re.match(r"\d+\.\d+", inside(image, "python", "-c", code).strip().splitlines()[-1]), "torch without CUDA"
    assert "git version" in inside(image, "git", "--version")
    assert "Learn what good parts look like" in inside(image, "csflow", "--help")
    assert "retrain" in inside(image, "python", "-m", "pipelines", "compile", "--help")


@dataclass(frozen=True)
class Served:
    """A container of the serving image that answers for the line ``small``."""

    container: str
    port: int
    grpc_port: int

    def post(self, path: str, body: object) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def wait_until_ready(self) -> None:
        for _ in range(1200):
            connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
            try:
                connection.request("GET", "/v2/models/small/ready")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                running = docker("inspect", "--format={{.State.Running}}", self.container).strip()
                assert running == "true", docker("logs", self.container)
            time.sleep(0.1)
        raise AssertionError(docker("logs", self.container))


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "small"
    subprocess.run([sys.executable, str(ROOT / ".ci" / "small_detector.py"), str(folder)], cwd=ROOT, check=True)
    return folder


def start(image: str, detector: Path) -> Served:
    port, grpc_port = build.free_port(), build.free_port()
    mount = f"--volume={detector}:/mnt/models:ro"
    ports = [f"--port={port}", f"--grpc-port={grpc_port}"]
    confined = [word for word in build.LOCKED_DOWN if word != "--rm"]
    container = docker("run", "--detach", *confined, "--network=host", mount, image, *ports).strip()
    return Served(container, port, grpc_port)


@pytest.fixture
def served(images: dict[str, str], detector: Path) -> Iterator[Served]:
    started = start(images["csflow-serve"], detector)
    try:
        started.wait_until_ready()
        yield started
    finally:
        docker("rm", "--force", started.container)


def picture(side: int, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.docker
@pytest.mark.timeout(300)
def test_v1_v2_and_grpc_answer_alike_from_the_mounted_directory(served: Served, detector: Path) -> None:
    from csflow.system.files import sha256_tree

    part = picture(120)
    text = base64.b64encode(part).decode()
    status, v1 = served.post("/v1/models/small:predict", {"instances": [{"image": {"b64": text}}]})
    assert status == 200, v1
    (answer,) = v1["predictions"]
    assert answer["version"] == sha256_tree(detector)[:12]
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
    status, v2 = served.post("/v2/models/small/infer", {"inputs": [tensor]})
    assert status == 200, v2
    outputs = {output["name"]: output["data"][0] for output in v2["outputs"]}
    assert outputs["score"] == pytest.approx(answer["score"], rel=1e-6)
    assert (outputs["decision"], outputs["version"]) == (answer["decision"], answer["version"])
    assert score_over_grpc(served, part) == pytest.approx(answer["score"], rel=1e-6)


def score_over_grpc(served: Served, part: bytes) -> float:
    with without_arguments():
        import grpc  # type: ignore[import-untyped]
        from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
        from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    tensor = pb.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(part)
    with grpc.insecure_channel(f"{HOST}:{served.grpc_port}") as channel:
        reply = GRPCInferenceServiceStub(channel).ModelInfer(
            pb.ModelInferRequest(model_name="small", inputs=[tensor]), timeout=60
        )
    (score,) = (output for output in reply.outputs if output.name == "score")
    return float(score.contents.fp64_contents[0])


@pytest.mark.docker
@pytest.mark.timeout(300)
def test_stopping_finishes_the_request_in_flight_within_the_grace_period(served: Served) -> None:
    text = base64.b64encode(picture(900)).decode()
    body = {"instances": [{"image": {"b64": text}}] * 16}
    begun, answers = time.monotonic(), list[int]()
    assert served.post("/v1/models/small:predict", body)[0] == 200
    alone = time.monotonic() - begun
    worker = threading.Thread(target=lambda: answers.append(served.post("/v1/models/small:predict", body)[0]))
    worker.start()
    time.sleep(alone / 3)
    assert not answers, "the request must still be in flight"
    grace, asked = 30, time.monotonic()
    docker("stop", f"--time={grace}", served.container)
    took = time.monotonic() - asked
    worker.join(60)
    assert answers == [200]
    assert took < grace, "it was killed"
    assert docker("inspect", "--format={{.State.ExitCode}}", served.container).strip() == "0"


@pytest.mark.docker
@pytest.mark.timeout(120)
def test_a_signal_while_it_loads_ends_it_at_once(images: dict[str, str], detector: Path) -> None:
    started = start(images["csflow-serve"], detector)
    try:
        time.sleep(1.0)
        asked = time.monotonic()
        docker("stop", "--time=20", started.container)
        assert time.monotonic() - asked < 15
        assert docker("inspect", "--format={{.State.ExitCode}}", started.container).strip() in {"143", "0"}
    finally:
        docker("rm", "--force", started.container)


@pytest.mark.docker
def test_nothing_mounted_is_named(images: dict[str, str]) -> None:
    command = ["docker", "run", *build.LOCKED_DOWN, "--network=host", images["csflow-serve"]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "/mnt/models is not a detector directory" in done.stderr
