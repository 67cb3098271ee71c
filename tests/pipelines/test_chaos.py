"""A run that is killed at any moment, or finds any kept file damaged, ends like one that nobody disturbed.

``CSFLOW_CHAOS`` says at how many moments runs are killed (2 if it is not set; ``make test-chaos`` takes 50), and with
``CSFLOW_CHAOS_DAMAGE=1`` every kind of kept file is damaged in turn as well.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import onnx
import psutil
import pytest

from csflow.adapters.deployment.local import LocalEndpoints
from csflow.adapters.mlflow.open_runs import OpenRuns
from csflow.runs.services import Services
from csflow.system.files import sha256_file
from csflow.system.process_family import FAMILY
from csflow.system.workspace import Workspace
from tests.pipelines.test_local_run import ROOT, Factory

MOMENTS = int(os.environ.get("CSFLOW_CHAOS", "2"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + 300 * MOMENTS)]

LINE = "plates"
SEED = 20261127
PATIENCE = 90.0
"""Seconds until everything must have ended after a signal; a step has 60 to save its work."""


@dataclass
class Home:
    """A workspace in which the line runs; one that is cleared goes on under a new name.

    MLflow keeps a database open under its name, so that this process would go on reading one that was deleted.
    """

    factory: Factory
    folder: Path
    lives: int = 0

    @property
    def root(self) -> Path:
        return self.folder / f"life-{self.lives}"

    @property
    def services(self) -> Services:
        return Services.of(Workspace(self.root))

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command that a person types."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root.parent / f"{self.root.name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "csflow.cli", "run", str(self.factory.yaml)],
                cwd=ROOT,
                env=self.factory.environment | {"CSFLOW_HOME": str(self.root), "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
            )

    def finish(self) -> None:
        """Run the line to its end."""
        assert self.start().wait() == 0, self.log

    @property
    def log(self) -> str:
        return (self.root.parent / f"{self.root.name}.log").read_text(errors="replace")[-4000:]

    def processes(self) -> list[psutil.Process]:
        """Everything that runs for this workspace, except the servers of its endpoint."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                environment = process.environ()
                ours = environment.get("CSFLOW_HOME") == str(self.root)
                if ours and not environment.get(FAMILY, "").startswith("endpoint-") and process.status() != "zombie":
                    found.append(process)
        return found

    def results(self) -> dict[str, str]:
        """The digests of all that a run keeps and that depends on nothing but its inputs."""
        (digest,) = (v.tags["detector_digest"] for v in self.services.registry.versions(LINE) if v.is_champion)
        detector = self.root / "detectors" / LINE / digest
        published = [path.name for path in detector.parent.iterdir()]
        assert published == [digest], f"{digest} was promoted, {published} published\n{self.log}"
        files = {f"detector/{path.relative_to(detector)}": path for path in detector.rglob("*") if path.is_file()}
        for folder in ("features", "models"):
            files |= {str(p.relative_to(self.root)): p for p in (self.root / folder).rglob("*") if p.is_file()}
        # The first names the run and the time, the second has seconds; the model's graph names the digest of the first.
        changing = ("lineage.json", "training.json", "model.onnx")
        found = {name: sha256_file(path) for name, path in files.items() if not name.endswith(changing)}
        graph = onnx.load(str(detector / "model.onnx"), load_external_data=False).graph
        return found | {"graph": hashlib.sha256(graph.SerializeToString()).hexdigest()}

    def check_nothing_is_left(self) -> None:
        """No process but the endpoint's, no run in state RUNNING, one version with a decision, no stray file."""
        assert self.processes() == []
        assert OpenRuns(Workspace(self.root)).of(LINE) == []
        assert [version.decision for version in self.services.registry.versions(LINE)] == ["promoted"]
        stray = [
            path
            for pattern in ("**/*.tmp", "**/*.part", "models/*.work", "runs/*/kfp", "runs/*/tmp", "**/.plates.lock")
            for path in self.root.glob(pattern)
            if path.parent.name != "endpoints"  # the endpoint's lock stays
        ]
        assert stray == []
        serving = LocalEndpoints(Workspace(self.root)).status(LINE)
        assert serving is not None
        servers = [
            p.pid for p in psutil.process_iter(["cmdline"]) if str(self.root) in " ".join(p.info["cmdline"] or [])
        ]
        assert servers == [serving.pid]

    def clear(self) -> None:
        LocalEndpoints(Workspace(self.root)).stop(LINE)
        shutil.rmtree(self.root)
        self.lives += 1


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Factory:
    return Factory(tmp_path_factory.mktemp("chaos"))


@pytest.fixture
def home(factory: Factory, tmp_path: Path) -> Iterator[Home]:
    made = Home(factory, tmp_path / "home")
    yield made
    if made.root.exists():
        made.clear()


@pytest.fixture(scope="module")
def undisturbed(factory: Factory) -> Iterator[tuple[Home, float, dict[str, str]]]:
    """A run that nobody disturbs, its seconds and its results."""
    made = Home(factory, factory.root / "undisturbed")
    begin = time.monotonic()
    made.finish()
    yield made, time.monotonic() - begin, made.results()
    made.clear()


def strike(home: Home, command: subprocess.Popen[bytes], rng: random.Random) -> tuple[str, bool]:
    """Send a signal to the command or to any process of its run; return what was done, and if the command got it.

    A run may go on without some of its processes, such as its guard.
    """
    number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGTERM, signal.SIGINT])
    if number == signal.SIGKILL and rng.random() < 0.5 and (alive := home.processes()):
        victim = rng.choice(alive)
        with suppress(psutil.Error):
            what = " ".join(victim.cmdline()[:4])
            victim.kill()
            return f"SIGKILL to {what}", victim.pid == command.pid
    command.send_signal(number)
    return f"{number.name} to the command", True


def wait_until(condition: Callable[[], bool], message: str, *, seconds: float = PATIENCE) -> None:
    last = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < last, message
        time.sleep(0.2)


def test_runs_that_are_killed_at_any_moment_end_like_an_undisturbed_one(
    undisturbed: tuple[Home, float, dict[str, str]], home: Home
) -> None:
    _, life, expected = undisturbed
    rng = random.Random(SEED)
    for turn in range(MOMENTS):
        command, moment = home.start(), rng.uniform(0.02, 0.95) * life
        with suppress(subprocess.TimeoutExpired):
            command.wait(moment)
        done, direct = strike(home, command, rng)
        what = f"moment {turn}, {moment:.1f} s of {life:.1f} s: {done}"
        with suppress(subprocess.TimeoutExpired):
            command.wait(PATIENCE if direct else PATIENCE + 2 * life)
        wait_until(lambda: not home.processes(), f"{what}: something goes on\n{home.log}")
        if command.returncode == 0:  # a later moment of its life than this run had
            assert home.results() == expected, what
            home.check_nothing_is_left()
            home.clear()
    home.finish()
    assert home.results() == expected
    home.check_nothing_is_left()


STEPS = ("ingest", "validate", "cache_features", "train", "evaluate", "register", "promote")


@pytest.mark.parametrize("after", STEPS if os.environ.get("CSFLOW_CHAOS_DAMAGE") else ["register"])
def test_a_run_that_is_killed_after_a_step_goes_on_from_there(
    undisturbed: tuple[Home, float, dict[str, str]], home: Home, after: str
) -> None:
    """What a step has said that it did, it keeps: a version between registration and promotion has lost its files."""
    _, life, expected = undisturbed
    command = home.start()
    wait_until(lambda: f"  {after}: " in home.log, f"no {after}\n{home.log}", seconds=3 * life)
    command.kill()
    command.wait()
    wait_until(lambda: not home.processes(), "something goes on")
    home.finish()
    assert home.results() == expected
    home.check_nothing_is_left()


KEPT = ("data", "features", "models")
"""Folders of what is kept between steps and runs."""


def kinds_of_files(root: Path) -> dict[str, Path]:
    """One file of each kind that is kept, by its kind: folder, depth and suffix or name."""
    files = [path for folder in KEPT for path in sorted((root / folder).rglob("*")) if path.is_file()]

    def kind(path: Path) -> str:
        parts = path.relative_to(root).parts
        return f"{parts[0]}/{len(parts)}/{path.suffix or 'entry'}" + (f"/{path.name}" if path.suffix == ".json" else "")

    return {kind(path): path for path in reversed(files)}


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


@pytest.mark.skipif(not os.environ.get("CSFLOW_CHAOS_DAMAGE"), reason="needs CSFLOW_CHAOS_DAMAGE (make test-chaos)")
def test_a_damaged_file_is_never_used(undisturbed: tuple[Home, float, dict[str, str]], home: Home) -> None:
    """The registry is new each time, so that the run needs every file again."""
    source, _, expected = undisturbed
    for kind, file in kinds_of_files(source.root).items():
        for damage in (flipped, lambda content: content[: len(content) // 2]):
            for folder in KEPT:
                shutil.copytree(source.root / folder, home.root / folder, symlinks=True)
            target = home.root / file.relative_to(source.root)
            target.chmod(0o644)
            target.write_bytes(damage(file.read_bytes()))
            home.finish()
            assert home.results() == expected, kind
            home.check_nothing_is_left()
            home.clear()


@pytest.mark.skipif(not os.environ.get("CSFLOW_CHAOS_DAMAGE"), reason="needs CSFLOW_CHAOS_DAMAGE (make test-chaos)")
@pytest.mark.parametrize("name", ["checkpoint.safetensors", "history.json"])
def test_a_damaged_checkpoint_is_never_used(
    undisturbed: tuple[Home, float, dict[str, str]], home: Home, name: str
) -> None:
    _, _, expected = undisturbed
    command = home.start()
    wait_until(lambda: bool(list(home.root.glob(f"models/*.work/{name}"))), f"no {name}\n{home.log}")
    command.kill()
    wait_until(lambda: not home.processes(), "orphans")
    (file,) = home.root.glob(f"models/*.work/{name}")
    file.write_bytes(flipped(file.read_bytes()))
    home.finish()
    assert home.results() == expected
    home.check_nothing_is_left()
