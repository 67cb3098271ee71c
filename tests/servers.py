"""Real servers for tests, each a process of its own: PostgreSQL, an object store that speaks S3, MLflow.

Each is a context manager that yields once the server answers and has ended it, with its children, when
the block is left. Logs go to the folder that is given; the end of the log is shown when a server fails.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

PASSWORD = "testing"
_PATIENCE = 180.0
"""Seconds a server may take until it answers; a busy machine with two cores needs 40 for MLflow's."""


@dataclass(frozen=True)
class ObjectStore:
    """An object store that speaks S3 over HTTP, and a bucket in it."""

    endpoint: str
    bucket: str

    @property
    def uri(self) -> str:
        """The bucket: ``s3://BUCKET``."""
        return f"s3://{self.bucket}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that every part of csflow, DVC and MLflow finds the store by."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": PASSWORD,
            "AWS_SECRET_ACCESS_KEY": PASSWORD,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def keys(self, prefix: str = "") -> list[str]:
        """Keys of the objects below a prefix, asked from the store itself."""
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def read(self, key: str) -> bytes:
        """Content of an object."""
        return self._client().get_object(Bucket=self.bucket, Key=key)["Body"].read()  # type: ignore[no-any-return]

    def write(self, key: str, content: bytes) -> None:
        """Make or replace an object."""
        self._client().put_object(Bucket=self.bucket, Key=key, Body=content)

    def create_bucket(self) -> None:
        """Make the bucket."""
        self._client().create_bucket(Bucket=self.bucket)

    def _client(self):  # type: ignore[no-untyped-def]
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=PASSWORD,
            aws_secret_access_key=PASSWORD,
            region_name="us-east-1",
        )


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A new PostgreSQL on loopback with password authentication; yields the address of an empty database.

    Skips the test where PostgreSQL is not installed. Its files lie in a folder of their own below the
    system's temporary one: the server refuses to run as root, and no other user may enter pytest's folders.
    """
    binaries = _postgres_binaries()
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
    data = Path(tempfile.mkdtemp(prefix="csflow-postgres."))
    try:
        (data / "password").write_text(PASSWORD)
        if user:
            for path in (data / "password", data):
                shutil.chown(path, "postgres", "postgres")
        cluster, port = data / "cluster", free_port()
        options = ["-U", "mlflow", "--auth=scram-sha-256", f"--pwfile={data / 'password'}", "-E", "UTF8", "--no-locale"]
        made = subprocess.run(
            [*user, str(binaries / "initdb"), "-D", str(cluster), "--no-sync", *options],
            cwd=data,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stdout + made.stderr
        command = [*user, str(binaries / "postgres"), "-D", str(cluster), "-p", str(port), "-k", str(data), "-F"]
        address = f"postgresql://mlflow:{PASSWORD}@127.0.0.1:{port}/postgres"
        # SIGINT is PostgreSQL's "fast" shutdown: SIGTERM would wait for every client to leave.
        with _process(command, folder / "postgres.log", lambda: _accepts(address), cwd=data, stop=signal.SIGINT):
            yield address.replace("postgresql://", "postgresql+psycopg://")
    finally:
        shutil.rmtree(data, ignore_errors=True)


@contextmanager
def object_store(folder: Path, bucket: str = "factory", *, checks_credentials: bool = False) -> Iterator[ObjectStore]:
    """An S3 store over HTTP (moto's server) with a bucket.

    Args:
        folder: For its log.
        bucket: Name of the bucket that is made.
        checks_credentials: Refuse whoever does not sign with a key of the store, as a real store does; by
            default every key is taken. The key that :attr:`ObjectStore.environment` names is then refused too.
    """
    port = free_port()
    store = ObjectStore(f"http://127.0.0.1:{port}", bucket)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    # Only making the bucket is free.
    environment = {"INITIAL_NO_AUTH_ACTION_COUNT": "1"} if checks_credentials else {}
    ready = f"{store.endpoint}/moto-api/"
    with _process(command, folder / "object-store.log", lambda: _answers(ready), environment=environment):
        store.create_bucket()
        yield store


@contextmanager
def mlflow_server(database: str, store: ObjectStore, folder: Path, *, prefix: str = "mlflow") -> Iterator[str]:
    """An MLflow server that keeps runs and models in ``database`` and hands artifacts through to the store.

    Args:
        database: SQLAlchemy address, such as :func:`postgres` yields.
        store: Artifacts lie below ``s3://BUCKET/PREFIX`` of it; only the server needs its credentials.
        folder: For its log.
        prefix: Of the artifacts' keys.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    options = {
        "--backend-store-uri": database,
        "--artifacts-destination": f"{store.uri}/{prefix}",
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
    }
    words = [word for pair in options.items() for word in pair]
    command = [sys.executable, "-m", "mlflow", "server", "--serve-artifacts", *words]
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    ready = f"{address}/health"
    with _process(
        command, folder / "mlflow.log", lambda: _answers(ready), environment=store.environment | settings, cwd=folder
    ):
        yield address


def free_port() -> int:
    """A port of the loopback interface that nobody listens on at this moment."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _postgres_binaries() -> Path:
    """Debian keeps the server's programs out of PATH, by version."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    found = str(installed[-1]) if installed else shutil.which("initdb")
    if found is None:
        pytest.skip("needs PostgreSQL's server: apt-get install postgresql (or .ci/postgres)")
    return Path(found).parent


@contextmanager
def _process(
    command: Sequence[str],
    log: Path,
    is_ready: Callable[[], bool],
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[None]:
    """A server in a session of its own, until the block is left."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        server = subprocess.Popen(
            command,
            cwd=cwd,
            env=os.environ | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _await(server, log, is_ready)
        yield
    finally:
        server.send_signal(stop)
        with suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with suppress(ProcessLookupError):  # its workers, should they have outlived it
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(20)


def _await(server: subprocess.Popen[bytes], log: Path, is_ready: Callable[[], bool]) -> None:
    last = time.monotonic() + _PATIENCE
    while not is_ready():
        if server.poll() is not None or time.monotonic() > last:
            state = f"ended with {server.returncode}" if server.poll() is not None else "does not answer"
            pytest.fail(f"{server.args} {state}; end of its log:\n{log.read_text()[-3000:]}")
        time.sleep(0.2)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True


def _accepts(address: str) -> bool:
    import psycopg

    try:
        psycopg.connect(address, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
