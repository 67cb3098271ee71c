"""Fixtures every test may use."""

from __future__ import annotations

import functools
import os
import shutil
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import botocore.session
import pytest

from csflow.adapters.mlflow import database

os.environ["DVC_NO_ANALYTICS"] = "1"
os.environ["GIT_CONFIG_NOSYSTEM"] = "1"

# A shell ignores them for what it starts in the background or under nohup, and all that the tests start inherits that.
for number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGHUP else signal.default_int_handler)


collect_ignore = ["csflow/adapters/serving/triton_calls.py"]
"""Runs with Triton's clients in an environment of its own, see test_triton.py."""

REQUIRED = "CSFLOW_REQUIRE"
"""Markers, parted by commas, whose tests must not be skipped: what a machine is said to have, it has to have."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests on real images: they take longest, and a long last test keeps a worker waiting."""
    items.sort(key=lambda item: item.get_closest_marker("real") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a test that the machine must be able to run into a failure."""
    report = yield
    required = {marker for marker in os.environ.get(REQUIRED, "").split(",") if item.get_closest_marker(marker)}
    if report.skipped and required:
        report.outcome = "failed"
        report.longrepr = f"{REQUIRED} names {', '.join(sorted(required))}, but the test was skipped: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def databases_are_copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Copy MLflow's local database from one that is made once, because making one takes seconds."""
    upgrade, ready = database._upgrade, tmp_path_factory.mktemp("mlflow") / "mlflow.db"

    def copy_or_upgrade(path: Path) -> None:
        if path.exists():
            return upgrade(path)
        if not ready.exists():
            upgrade(ready)
        shutil.copyfile(ready, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "_upgrade", copy_or_upgrade)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_botocore_loader() -> Iterator[None]:
    """Let all S3 clients share botocore's description of S3, which takes longer to read than most tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty csflow workspace of this test's own."""
    root = tmp_path / "csflow-home"
    monkeypatch.setenv("CSFLOW_HOME", str(root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return root


@pytest.fixture(scope="session")
def mtd() -> Path:
    """The Magnetic Tile Defects images as published."""
    folder = Path(os.environ.get("CSFLOW_TEST_DATA", "/nonexistent")) / "mtd"
    if not folder.is_dir():
        pytest.skip("needs the Magnetic Tile Defects images: set CSFLOW_TEST_DATA to the folder that holds mtd/")
    return folder
