"""Build csflow-train and csflow-serve from the locks, and print their sizes and start-up times.

``make images`` calls this. BASE_IMAGE, INDEX_URL and CA_BUNDLE (options, or environment variables) make it work in
an air-gapped factory. Without them the base image is one that this machine has or can pull, and index and certificates
are those that pip uses here. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ("csflow-train", "csflow-serve")
OWN_BASE, PUBLIC_BASE = "csflow-base:bookworm", "python:3.11-slim-bookworm"
CONTEXT = ("csflow", "components", "pipelines", "requirements", "infra/images", "pyproject.toml", "README.md")
BUNDLE = "infra/images/ca/bundle.crt"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
LOCKED_DOWN = ("--rm", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")
READY_SECONDS = 180.0


class BuildError(Exception):
    """The images cannot be built; the message says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the images, print their figures, and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        check_engine()
        base = base_image(options.base_image)
        index = index_url(options.index_url)
        print(f"base image {base}, index {shown(index)}, CA bundle {options.ca_bundle or 'none'}", flush=True)
        names = options.only or IMAGES
        bundle = Path(BUNDLE).name if options.ca_bundle else ""
        with build_context(options.ca_bundle) as context:
            for name in names:
                build(name, context, build_arguments(base, index, bundle), options.network)
        report(names)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Build the images csflow-train and csflow-serve.")
    environment = os.environ.get
    certificates = environment("CA_BUNDLE") or environment("PIP_CERT") or environment("SSL_CERT_FILE")
    parser.add_argument("--base-image", default=environment("BASE_IMAGE", ""), help="Python 3.11 or newer on Debian.")
    parser.add_argument("--index-url", default=environment("INDEX_URL", ""), help="Package index.")
    parser.add_argument(
        "--ca-bundle", default=certificates or "", help="PEM file to verify downloads of the build with."
    )
    parser.add_argument("--network", default="host", help="Network of the build (default %(default)s).")
    parser.add_argument("--only", action="append", choices=IMAGES, help="Build this one; may be repeated.")
    return parser


def check_engine() -> None:
    """Raise `BuildError` unless a Docker engine answers."""
    if shutil.which("docker") is None:
        raise BuildError("Docker is not installed. Install it (Debian: apt-get install docker.io).")
    if _docker("info").returncode != 0:
        raise BuildError("No Docker engine answers. Start one, or set DOCKER_HOST to the address of one.")


def base_image(asked: str) -> str:
    """Return the requested base image, else one that the engine has, else Python's public one if it can be pulled."""
    for name in [asked] if asked else [OWN_BASE, PUBLIC_BASE]:
        if _docker("image", "inspect", name).returncode == 0:
            return name
    wanted = asked or PUBLIC_BASE
    with suppress(subprocess.TimeoutExpired):
        if _docker("pull", "--quiet", wanted, timeout=300).returncode == 0:
            return wanted
    raise BuildError(
        f"The engine does not have the base image {wanted} and cannot pull it. Make one from Debian packages with "
        f"infra/images/base.sh ({OWN_BASE}), or name one that this engine has: make images BASE_IMAGE=NAME:TAG"
    )


def index_url(asked: str) -> str:
    """Return the requested package index, else the one that pip or uv uses here; empty for the public one."""
    environment = os.environ.get("PIP_INDEX_URL") or os.environ.get("UV_DEFAULT_INDEX")
    found = asked or environment or _pip_setting("global.index-url")
    if found.startswith("file:"):
        raise BuildError(f"A build cannot reach the package index {found}, a folder. Name one with INDEX_URL=.")
    return found


def _pip_setting(key: str) -> str:
    command = [sys.executable, "-m", "pip", "config", "get", key]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""


def shown(url: str) -> str:
    """Return an address without a user name and password."""
    parts = urlsplit(url)
    return url.replace(f"{parts.netloc}", parts.netloc.rpartition("@")[2], 1) if url else "as pip's default"


@contextmanager
def build_context(certificates: str) -> Iterator[Path]:
    """Yield a folder with the contents of the images and the certificates that verify downloads of the build."""
    if certificates and not Path(certificates).is_file():
        raise BuildError(f"The CA bundle {certificates} is not a file. Correct CA_BUNDLE, PIP_CERT or SSL_CERT_FILE.")
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        for name in CONTEXT:
            origin = ROOT / name
            if origin.is_dir():
                shutil.copytree(origin, context / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "*.crt"))
            else:
                shutil.copy2(origin, context / name)
        if certificates:
            shutil.copyfile(certificates, context / BUNDLE)
        yield context


def build_arguments(base: str, index: str, bundle: str) -> list[str]:
    """Return all build arguments; empty ones are left out."""
    values = {
        "BASE_IMAGE": base,
        "INDEX_URL": index,
        "CA_BUNDLE": bundle,
        "VERSION": project_version(),
        "REVISION": revision(),
        "SOURCE": source(),
        # The time of the commit and not the present one, so that the same commit gives the same labels.
        "CREATED": _git("log", "-1", "--format=%cI"),
    }
    given = [f"--build-arg={name}={value}" for name, value in values.items() if value]
    return given + [f"--build-arg={name}" for name in PROXIES if os.environ.get(name)]


def project_version() -> str:
    """Return the version in pyproject.toml, which is the tag of the images."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def revision() -> str:
    """Return the commit, with ``-dirty`` if the contents of the images differ from it; empty without git."""
    commit = _git("rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and _git("status", "--porcelain", "--", *CONTEXT) else commit


def source() -> str:
    """Return the address of the cloned repository, without credentials; empty if there is none."""
    url = _git("remote", "get-url", "origin")
    return shown(url) if "://" in url and not url.startswith("file:") else ""


def _git(*arguments: str) -> str:
    with suppress(OSError):
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""
    return ""


def build(name: str, context: Path, arguments: list[str], network: str) -> None:
    """Build one image; the engine's output goes to a log file, whose end is shown after a failure."""
    log = ROOT / "build" / "images" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    tag, start = f"{name}:{project_version()}", time.monotonic()
    print(f"building {tag} (log: {log.relative_to(ROOT)}) ...", flush=True)
    command = ["docker", "build", f"--network={network}", f"--file=infra/images/{name}.Dockerfile", f"--tag={tag}"]
    with log.open("w") as output:
        done = subprocess.run([*command, *arguments, "."], cwd=context, stdout=output, stderr=output, check=False)
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise BuildError(f"{tag} was not built. The end of {log}:\n{tail}")
    print(f"  built in {time.monotonic() - start:.0f} s", flush=True)


def report(names: Sequence[str]) -> None:
    """Print size and start-up time of each image, measured in locked-down containers as a cluster runs them."""
    version = project_version()
    for name in names:
        image = f"{name}:{version}"
        size = int(_docker("image", "inspect", "--format={{.Size}}", image).stdout)
        print(f"{image}: {size / 1e9:.2f} GB, {start_up(name, version)}", flush=True)


def start_up(name: str, version: str) -> str:
    """Measure and describe how long an image takes from ``docker run`` until it is usable."""
    image = f"{name}:{version}"
    if name == "csflow-train":
        command = _seconds_of(image, "csflow", "--help")
        imports = _seconds_of(image, "python", "-c", "import kfp, mlflow, torch, timm, csflow.detector.detector")
        return f"csflow --help {command:.1f} s, all imports of a training step {imports:.1f} s"
    maker = f"csflow-train:{version}"
    if _docker("image", "inspect", maker).returncode != 0:
        return f"start-up not measured: {maker} makes the detector to serve, and the engine does not have it"
    with tempfile.TemporaryDirectory() as folder:
        make_small_detector(maker, Path(folder))
        ready = min(_seconds_until_ready(image, Path(folder) / "small") for _ in range(2))
        return f"ready to answer after {ready:.1f} s"


def _seconds_of(image: str, *command: str) -> float:
    """Return the better of two times, because the first run reads the new image from disk."""
    taken = []
    for _ in range(2):
        start = time.monotonic()
        _checked("run", *LOCKED_DOWN, image, *command)
        taken.append(time.monotonic() - start)
    return min(taken)


def make_small_detector(image: str, folder: Path) -> None:
    """Make the training image write a small detector, for the line ``small``, into ``folder/small``."""
    folder.chmod(0o755)
    script = ROOT / ".ci" / "small_detector.py"
    mounts = [f"--volume={folder}:/out", f"--volume={script}:/small_detector.py:ro"]
    user = f"--user={os.getuid()}:{os.getgid()}"
    _checked(
        "run", "--rm", "--read-only", "--tmpfs=/tmp", user, *mounts, image, "python", "/small_detector.py", "/out/small"
    )


def _seconds_until_ready(image: str, detector: Path) -> float:
    port, grpc_port = free_port(), free_port()
    mount = f"--volume={detector}:/mnt/models:ro"
    arguments = ["--model-dir=/mnt/models", "--model-name=small", f"--port={port}", f"--grpc-port={grpc_port}"]
    start = time.monotonic()
    kept = [word for word in LOCKED_DOWN if word != "--rm"]  # its log is wanted if it ends
    container = _checked("run", "--detach", *kept, "--network=host", mount, image, *arguments).strip()
    opener = build_opener(ProxyHandler({}))
    try:
        while time.monotonic() < start + READY_SECONDS and _running(container):
            with suppress(OSError), opener.open(f"http://127.0.0.1:{port}/v2/models/small/ready", timeout=5) as answer:
                if answer.status == 200:
                    return time.monotonic() - start
            time.sleep(0.05)
        said = _docker("logs", "--tail=20", container)
        raise BuildError(f"{image} does not become ready. Its log ends with:\n{said.stdout}{said.stderr}")
    finally:
        _docker("rm", "--force", container)


def _running(container: str) -> bool:
    return _docker("inspect", "--format={{.State.Running}}", container).stdout.strip() == "true"


def free_port() -> int:
    """Return a TCP port of this machine that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _checked(*arguments: str) -> str:
    done = _docker(*arguments)
    if done.returncode != 0:
        raise BuildError(f"docker {' '.join(arguments)} failed:\n{done.stderr.strip()[-2000:]}")
    return done.stdout


def _docker(*arguments: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=timeout)


if __name__ == "__main__":
    sys.exit(main())
