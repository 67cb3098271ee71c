"""List the folders and variables of this machine that a step needs when it runs in a container.

Every folder keeps its path, because runs, lineage and the registry name files by their absolute paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from csflow.config import LineConfig
from csflow.runs.data_folders import data_folders
from csflow.system.process_family import FAMILY
from csflow.system.project import PROJECT
from csflow.system.workspace import Workspace

PREFIXES = ("CSFLOW_", "MLFLOW_", "AWS_", "DVC_", "OMP_")
NAMES = frozenset({
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "KUBECONFIG", "LOGNAME", "TZ", "USER",
})  # fmt: skip
HERE_ONLY = frozenset({PROJECT, FAMILY, "CSFLOW_LINES", "CSFLOW_TEST_DATA", "DVC_SITE_CACHE_DIR"})
"""Variables that a step does not read, or for which the image has a value of its own."""


@dataclass(frozen=True)
class Place:
    """A file or folder of this machine as a container sees it.

    Attributes:
        source: Path on this machine.
        target: Path in the container.
        writable: True if the container may change it.
    """

    source: Path
    target: Path
    writable: bool = False


def passed_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Select the variables that configure csflow, MLflow, DVC and the S3 client, proxies and certificates."""
    return {
        name: value
        for name, value in environment.items()
        if (name.startswith(PREFIXES) or name in NAMES) and name not in HERE_ONLY
    }


def places(line: LineConfig, workspace: Workspace, root: Path, environment: Mapping[str, str]) -> list[Place]:
    """List everything to mount for the steps of one run.

    Args:
        line: The line, which names the data repository and the weights.
        workspace: The workspace, to which every step writes.
        root: Folder of the run, inside the workspace.
        environment: Result of :func:`passed_environment`; files named there are mounted too.

    Raises:
        DataError: If the data repository is a path that does not exist or is no repository.
    """
    found = [Place(workspace.root, workspace.root, writable=True), *_endpoints(line, workspace, root, environment)]
    found += [Place(database, database, writable=True) for database in _database(environment, workspace)]
    data = data_folders(line)
    found += [Place(path, path) for path in data.read]
    found += [Place(path, path, writable=True) for path in data.written]
    read = set(_named_files(environment))
    weights = Path(line.features.weights)
    if weights.is_absolute() and weights.exists():
        read.add(weights)
    written = {place.target for place in found}
    return found + [Place(path, path) for path in sorted(read - written) if not _inside(path, workspace.root)]


def _endpoints(line: LineConfig, workspace: Workspace, root: Path, environment: Mapping[str, str]) -> Iterator[Place]:
    """Yield a folder of endpoints that only this run uses; yield nothing if endpoints are on a cluster.

    Process ids have no meaning across the border of a container: seen from inside, the line's endpoint would look
    dead and its state would be removed. Lock and log are shared nevertheless: the lock so that no other process
    promotes the line at the same time, the log because error messages name it.
    """
    if environment.get("CSFLOW_ENDPOINTS", "local") != "local":
        return
    own = root / "endpoints"
    own.mkdir(exist_ok=True)
    workspace.endpoints.mkdir(parents=True, exist_ok=True)
    yield Place(own, workspace.endpoints, writable=True)
    for name in (f".{line.line}.lock", f"{line.line}.log"):
        shared = workspace.endpoints / name
        for file in (shared, own / name):  # the first is mounted over the second
            file.touch()
        yield Place(shared, shared, writable=True)


def _database(environment: Mapping[str, str], workspace: Workspace) -> Iterator[Path]:
    """Yield the folder of an SQLite database outside the workspace, because SQLite writes its journal there too."""
    uri = environment.get("MLFLOW_TRACKING_URI", "")
    folder = Path(uri.removeprefix("sqlite:///")).parent
    if uri.startswith("sqlite:///") and folder.is_absolute() and not _inside(folder, workspace.root):
        yield folder


def _named_files(environment: Mapping[str, str]) -> Iterator[Path]:
    """Yield the files that variables name by their paths, such as certificates and credentials."""
    for value in environment.values():
        if value.startswith("/") and Path(value).is_file():
            yield Path(value)


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
