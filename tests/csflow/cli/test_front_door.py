"""One front door: any folder, any width, JSON wherever a table is printed, one exit status for what does not exist."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from csflow import __version__
from csflow.cli import main
from csflow.cli.app import app
from csflow.errors import UsageError
from csflow.system.project import PROJECT, find_project, project_folder, project_module, require_project
from csflow.system.workspace import Workspace

ROOT = Path(__file__).resolve().parents[3]
GROUP = typer.main.get_command(app)


def csflow(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a person does, with nothing of this process's environment that names a project."""
    ours = {"CSFLOW_HOME", "CSFLOW_LINES", PROJECT, "COLUMNS"}
    inherited = {key: value for key, value in os.environ.items() if key not in ours}
    return subprocess.run(
        [sys.executable, "-m", "csflow.cli", *words],
        cwd=cwd, env=inherited | {"PYTHONPATH": str(ROOT)} | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if subcommands := getattr(command, "commands", None):
        for name, each in subcommands.items():
            yield from leaves(each, (*path, name))
    else:
        yield path, command


COMMANDS = dict(leaves(GROUP))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is in no project."""
    for name in (PROJECT, "CSFLOW_LINES", "CSFLOW_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "plant"
    (root / "lines" / "deep").mkdir(parents=True)
    (root / "pipelines").mkdir()
    (root / "pipelines" / "__init__.py").touch()
    return root


def test_a_project_is_found_upwards(elsewhere: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_project() is None
    assert project_folder() == elsewhere
    monkeypatch.chdir(project / "lines" / "deep")
    assert find_project() == project
    assert Workspace.from_environment().root == project / ".csflow"


def test_the_variable_names_it_from_anywhere(elsewhere: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROJECT, str(project))
    assert require_project() == project
    monkeypatch.setenv("CSFLOW_HOME", str(elsewhere / "home"))
    assert Workspace.from_environment().root == elsewhere / "home", "the workspace's own variable wins"


def test_no_project_is_told_with_what_was_looked_for(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=rf"neither {elsewhere} nor a folder above it has lines/ and pipelines/"):
        require_project()
    monkeypatch.setenv(PROJECT, str(elsewhere / "nowhere"))
    with pytest.raises(UsageError, match=r"nowhere is not a csflow project: expected a folder with lines/"):
        find_project()


def test_what_the_pipelines_need_is_named(elsewhere: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "pipelines" / "odd.py").write_text("import a_package_nobody_has\n")
    monkeypatch.setenv(PROJECT, str(project))
    monkeypatch.setattr(sys, "path", list(sys.path))
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "pipelines"}
    for name in kept:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UsageError, match=r"a_package_nobody_has is not installed.*pip install 'csflow\[pipelines\]'"):
        project_module("pipelines.odd")
    sys.modules.pop("pipelines", None)
    sys.modules.update(kept)


def test_lines_are_those_of_the_project_from_any_folder(elsewhere: Path) -> None:
    named = csflow("--project", str(ROOT), "lines", "--json", cwd=elsewhere, CSFLOW_HOME=str(elsewhere / "home"))
    assert named.returncode == 0, named.stderr
    below = csflow("lines", "--json", cwd=ROOT / "tests", CSFLOW_HOME=str(elsewhere / "home"))
    assert {row["line"] for row in json.loads(named.stdout)} >= {"demo-texture", "mtd"}
    assert below.stdout == named.stdout


@pytest.mark.parametrize("words", [("run", "nuts"), ("demo",), ("submit", "nuts"), ("compile",), ("status",)])
def test_a_command_that_needs_a_project_says_so(elsewhere: Path, words: tuple[str, ...]) -> None:
    (elsewhere / "lines").mkdir()
    for name in ("nuts", "demo-texture"):
        (elsewhere / "lines" / f"{name}.yaml").write_text(f"line: {name}\ndata: {{path: data}}\n")
    done = csflow(*words, cwd=elsewhere)
    assert done.returncode == 2, done.stderr
    assert "No csflow project found" in done.stderr
    assert "Traceback" not in done.stderr


def test_compile_works_from_another_folder(elsewhere: Path) -> None:
    done = csflow("--project", str(ROOT), "compile", "retrain", "--output", "here.yaml", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert "csflow-retrain" in (elsewhere / "here.yaml").read_text()


def test_the_thin_door_is_the_same_house(elsewhere: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "lines", "--json"],
        cwd=ROOT, env=os.environ | {"CSFLOW_HOME": str(elsewhere / "home")}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert {row["line"] for row in json.loads(done.stdout)} >= {"demo-texture", "mtd"}


def test_version_and_completion() -> None:
    assert csflow("--version", cwd=ROOT).stdout == f"csflow {__version__}\n"
    unasked = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # nothing above this process need be a shell
    shown = csflow("--show-completion", "bash", cwd=ROOT, **unasked)
    assert shown.returncode == 0, shown.stderr
    assert "COMPREPLY=" in shown.stdout


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_helps_shortly_and_fully(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    done = CliRunner().invoke(app, [*path, "-h"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert "Usage:" in done.output
    assert command.help, "it says what it does"
    assert all(getattr(each, "help", None) for each in command.params), "every option is explained"


SILENT = ("serve", "export", "compile", "synthesize", "promote", "rollback", "reconcile")
"""Commands that print a sentence about what they did, and no table."""


@pytest.mark.parametrize("path", sorted(COMMANDS.keys() - {(name,) for name in SILENT}), ids=" ".join)
def test_wherever_a_table_is_printed_there_is_json(path: tuple[str, ...]) -> None:
    options = {name for each in COMMANDS[path].params for name in each.opts}
    assert "--json" in options


LINE = [("run",), ("estimate",), ("ablate",), ("choose",), ("evaluate",), ("why",), ("compare",), ("rollback",),
        ("reconcile",), ("endpoint",), ("serve",), ("export",), ("submit",), ("schedule",), ("demo",),
        ("data", "show")]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        *((*path, "nowhere-line") for path in LINE),
        ("promote", "nowhere-line@1"),
        ("compile", "--line", "nowhere-line"),
        ("data", "add", "nowhere-line", "."),
        ("run", "nowhere/line.yaml"),
        ("score", "nowhere.png", "--model", "demo-texture"),
        ("score", "README.md", "--model", "no/where"),
        ("serve", "no/where"),
        ("export", "no/where"),
        ("evaluate", "demo-texture", "--model", "no/where"),
        ("data", "add", "demo-texture", "no/where"),
        ("import", "mtd", "no/where", "dest"),
        ("import", "mvtec", "no/where", "dest"),
        ("import", "folder", "dest", "--good", "no/where"),
        ("data", "add", "demo-texture", "lines", "--masks", "no/where"),
        ("import", "folder", "dest", "--good", "lines", "--defective", "no/where"),
        ("score", "README.md", "--model", "nowhere-line"),
        ("evaluate", "demo-texture", "--model", "nowhere-line@1"),
        ("ablate", "demo-texture", "--joint", "nowhere-line"),
        ("schedule", "nowhere/line.yaml"),
        ("--project", "no/where", "lines"),
    ],
    ids=" ".join,
)
def test_what_does_not_exist_has_one_exit_status(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (PROJECT, "CSFLOW_LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CSFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "environ", os.environ.copy())  # what ``--project`` sets ends with the test
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["csflow", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2, capsys.readouterr().err
    assert not (ROOT / "dest").exists()


def test_defaults_in_words_are_seen() -> None:
    """Rich takes ``[default: …]`` in a help text for markup and shows nothing; ``show_default`` is shown."""
    texts = [each.help or "" for command in (GROUP, *COMMANDS.values()) for each in command.params]
    assert [text for text in texts if "[" in text] == []
    shown = CliRunner().invoke(app, ["-h"], env={"COLUMNS": "200"}).output
    assert "CSFLOW_PROJECT, else upwards from the current folder" in shown
