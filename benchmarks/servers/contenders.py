"""The servers that are compared, and how each is started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from sidebyside.process import ROOT

from servers.running import Running, free_ports, started
from servers.settings import PROTOCOLS

OURS, PLAIN = "ours", "plain FastAPI"

BENCHMARKS = ROOT / "benchmarks"


@dataclass(frozen=True)
class Contender:
    """A server to measure.

    Attributes:
        name: In the table.
        checkout: Root of the csflow that it runs; None for the plain server, which runs none.
        protocols: Those that it speaks.
        options: Further arguments of its command.
    """

    name: str
    checkout: Path | None
    protocols: tuple[str, ...]
    options: tuple[str, ...] = ()

    @property
    def python_path(self) -> str:
        """Return the module path of its processes."""
        return os.pathsep.join([str(self.checkout or ROOT), str(BENCHMARKS)])

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables of its processes; without the last, the current folder would come before the path."""
        return {"PYTHONPATH": self.python_path, "PYTHONWARNINGS": "ignore", "PYTHONSAFEPATH": "1"}

    def model(self, folder: Path, width: int) -> Path:
        """Return the detector directory, or the ONNX file, of a width."""
        return folder / f"{self.name.replace(' ', '-')}-{width}{'' if self.checkout else '.onnx'}"

    def copy(self, model: Path, target: Path) -> Path:
        """Copy a model, because pages of one mapped file would be shared by the lines of a server."""
        if model.is_dir():
            return Path(shutil.copytree(model, target))
        return Path(shutil.copyfile(model, target))

    def serve(
        self, models: Sequence[tuple[str, Path]], log: Path, confine: Callable[[], None] | None = None
    ) -> AbstractContextManager[Running]:
        """Start the server with some lines.

        Args:
            models: Name and model of each line.
            log: File for the server's output.
            confine: Limits the process, from inside.
        """
        ports = free_ports()
        named = [f"{name}={model}" for name, model in models]
        if self.checkout is None:
            command = [sys.executable, "-m", "servers.plain", str(ports[0]), *named]
            ports = (ports[0], 0)
        else:
            command = [sys.executable, "-m", "csflow.adapters.serving", "--port", str(ports[0])]
            command += ["--grpc-port", str(ports[1]), *self.options]
            command += [argument for name in named for argument in ("--model", name)]
        return started(self.name, command, self.environment, ports, log, confine)


def ours(options: Sequence[str] = ()) -> Contender:
    """Return the server of this checkout."""
    return Contender(OURS, ROOT, PROTOCOLS, tuple(options))


def older(version: str, checkout: Path) -> Contender:
    """Return the server of another checkout.

    Raises:
        ValueError: If the folder is none.
    """
    if not (checkout / "csflow/adapters/serving/__main__.py").is_file():
        raise ValueError(f"{checkout} is no checkout of csflow. Make one: git worktree add FOLDER beb3801")
    found = Contender(version, checkout.resolve(), PROTOCOLS)
    code = "import csflow.adapters.serving.__main__ as served; print(served.__file__)"
    told = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | found.environment, capture_output=True, text=True, check=True
    )
    if not Path(told.stdout.strip()).is_relative_to(checkout.resolve()):
        raise ValueError(f"{checkout} would be served with {told.stdout.strip()}, which is not in it.")
    return found


def plain() -> Contender:
    """Return the plain server."""
    return Contender(PLAIN, None, ("v1",))
