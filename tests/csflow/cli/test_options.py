"""What the commands share: the lines there are, and what is said if there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from csflow.cli.options import require_line_names, require_paths
from csflow.errors import ConfigError, UsageError
from csflow.system.project import PROJECT


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder that is in no project."""
    for name in (PROJECT, "CSFLOW_LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_project_the_remedy_is_to_name_one(elsewhere: Path) -> None:
    with pytest.raises(ConfigError, match=rf"No YAML files in {elsewhere}/lines. No csflow project found.*--project"):
        require_line_names()


def test_a_project_without_lines_needs_one(elsewhere: Path) -> None:
    (elsewhere / "lines").mkdir()
    (elsewhere / "pipelines").mkdir()
    (elsewhere / "pipelines" / "__init__.py").touch()
    with pytest.raises(ConfigError, match=rf"No YAML files in {elsewhere}/lines. Add one: NAME.yaml"):
        require_line_names()
    (elsewhere / "lines" / "bolts.yaml").touch()
    assert require_line_names() == ["bolts"]


def test_a_variable_that_names_an_empty_folder_is_named(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSFLOW_LINES", str(elsewhere / "others"))
    with pytest.raises(ConfigError, match=r"others. Add one, or correct CSFLOW_LINES"):
        require_line_names()


def test_the_first_missing_path_is_named(elsewhere: Path) -> None:
    require_paths(elsewhere, None)
    with pytest.raises(UsageError, match=rf"no/where does not exist.*relative ones start in {elsewhere}"):
        require_paths(elsewhere, Path("no/where"), Path("neither"))
