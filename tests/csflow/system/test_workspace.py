"""A workspace has any path that a file system allows, or is refused by name at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from csflow.errors import UsageError
from csflow.system.project import PROJECT, require_project
from csflow.system.workspace import LONGEST_ROOT, Workspace, sqlite_address


def named(monkeypatch: pytest.MonkeyPatch, root: str | Path) -> Workspace:
    monkeypatch.setenv("CSFLOW_HOME", str(root))
    return Workspace.from_environment()


def test_a_workspace_is_absolute_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to("real")
    for name in ("real", "./real/", f"{tmp_path}//real/", "~/real", "link", "a/../real"):
        assert named(monkeypatch, name).root == tmp_path / "real", name
    assert named(monkeypatch, "a ~b").root == tmp_path / "a ~b"
    assert list(tmp_path.iterdir()) == [tmp_path / "link"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a\nb", "line break or another control character"),
        ("a\x7f", "line break or another control character"),
        (os.fsdecode(b"a\xff"), "no UTF-8"),
        ("/".join(["x" * 100] * 5), f"expected at most {LONGEST_ROOT}"),
        ("file", "is a file"),
        ("file/deeper/home", "file is a file"),
        ("loop/home", "cannot be found"),
        ("~nobody-of-that-name/home", "cannot be found"),
    ],
)
def test_what_cannot_be_a_workspace_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match=f"workspace.*{reason}|path of the workspace.*{reason}"):
        named(monkeypatch, name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


@pytest.mark.parametrize("name", ["mlflow.db", "a b/ü#;&.db", "100%/x.db", "a%20b/x.db", "what?/x.db"])
def test_the_database_is_found_by_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import sqlalchemy

    address = sqlite_address(tmp_path / name)
    assert sqlalchemy.make_url(address).database == str(tmp_path / name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert Workspace(tmp_path).database == tmp_path / name


def test_a_project_that_python_cannot_import_from_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a b%20#ü", "a:b"):
        (tmp_path / name / "lines").mkdir(parents=True)
        (tmp_path / name / "pipelines").mkdir()
        (tmp_path / name / "pipelines/__init__.py").touch()
    monkeypatch.setenv(PROJECT, str(tmp_path / "a b%20#ü"))
    assert require_project() == tmp_path / "a b%20#ü"
    monkeypatch.setenv(PROJECT, str(tmp_path / "a:b"))
    with pytest.raises(UsageError, match="a:b has ':' in its path"):
        require_project()
