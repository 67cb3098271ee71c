"""docs/guides/cluster.md: its commands exist, its overlay renders, its paths are there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from checks import load, problems

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "guides" / "cluster.md").read_text()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
BLOCKS = re.findall(r"^```\n(.*?)^```$", GUIDE, flags=re.DOTALL | re.MULTILINE)
PROGRAM = re.compile(r"(?:\.venv/bin/)?(?P<program>csflow) (?P<rest>[a-z].*)")


def commands() -> list[tuple[str, tuple[str, ...]]]:
    """Program and words of every csflow command in a block of its own or between backticks."""
    lines = [line.split(" #")[0].strip() for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```\n.*?^```$", "", GUIDE, flags=re.DOTALL | re.MULTILINE)
    found = [match for text in (*lines, *re.findall(r"`([^`]+)`", prose)) if (match := PROGRAM.fullmatch(text))]
    return sorted({(match["program"], tuple(shlex.split(match["rest"]))) for match in found})


def program(name: str) -> Any:
    assert name == "csflow"
    from csflow.cli.app import app

    return typer.main.get_command(app)


def test_the_guide_names_the_commands_it_is_about() -> None:
    named = {(name, words[0]) for name, words in commands()}
    words = "import data rollback reconcile prune endpoint compile submit schedule status run"
    assert named >= {("csflow", each) for each in words.split()}


@pytest.mark.parametrize(("name", "words"), commands(), ids=lambda part: part if isinstance(part, str) else part[0])
def test_a_command_of_the_guide_exists_with_its_options(name: str, words: tuple[str, ...]) -> None:
    command: Any = program(name)
    rest = list(words)
    while hasattr(command, "commands"):
        assert rest, f"{name}: {' '.join(words)} is no complete command"
        assert rest[0] in command.commands, f"{name} has no command {rest[0]}: {', '.join(command.commands)}"
        command = command.commands[rest.pop(0)]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in rest if word.startswith("-") and word not in known | {"--help"}]
    assert not unknown, f"{name} {' '.join(words)}: no option {unknown}, there are {sorted(known)}"


def test_the_overlay_of_the_guide_renders_and_fits_together(render: Callable[[Path], str], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "infra" / "kubernetes", tmp_path / "infra" / "kubernetes")
    (block,) = [each for each in BLOCKS if "overlays/site/kustomization.yaml <<YAML" in each]
    files = block[block.index("mkdir") : block.index("make manifests")]
    variables = {"REGISTRY": "registry.test:5000/csflow", "STORAGE_CLASS": "nfs", "API_SERVER": "10.9.8.7"}
    environment = {"PATH": os.environ["PATH"]} | variables
    subprocess.run(["bash", "-euc", files], cwd=tmp_path, env=environment, check=True, timeout=60)
    text = render(tmp_path / "infra" / "kubernetes" / "overlays" / "site")
    assert problems(load(text), VERSION) == []
    found = {(each["kind"], each["metadata"]["namespace"]): each for each in yaml.safe_load_all(text)
             if each["metadata"]["name"] in ("csflow", "csflow-store") and "namespace" in each["metadata"]}  # fmt: skip
    assert found["PersistentVolumeClaim", "kubeflow"]["spec"]["storageClassName"] == "nfs"
    for namespace in ("csflow", "kubeflow"):
        assert found["ConfigMap", namespace]["data"]["CSFLOW_STORE"] == "s3://csflow/store"
        assert found["ConfigMap", namespace]["data"]["CSFLOW_NAMESPACE"] == "csflow"
    assert f"registry.test:5000/csflow/csflow-train:{VERSION}" in text
    assert "cidr: 10.9.8.7/32" in text
    assert "192.0.2.1" not in text


def test_the_line_of_the_guide_is_valid(tmp_path: Path) -> None:
    from csflow.config import load_line

    (block,) = [each for each in BLOCKS if "cat > lines/bolts.yaml" in each]
    (tmp_path / "bolts.yaml").write_text(block[block.index("<<YAML\n") + 7 : block.index("\nYAML") + 1])
    line = load_line(tmp_path / "bolts.yaml")
    assert line.schedule is not None
    assert [step.percent for step in line.serving.canary] == [10]


def test_secrets_that_the_manifests_name_are_made_by_the_guide() -> None:
    from checks.wiring import MADE_BY_PEOPLE

    for kind, name in MADE_BY_PEOPLE:
        made = rf"create {kind.lower()} (generic |docker-registry )?{name} "
        assert re.search(made, GUIDE), f"docs/guides/cluster.md does not show how {kind} {name} is made"


def test_files_and_targets_of_the_guide_are_there() -> None:
    paths = set(re.findall(r"(?<![\w/.])((?:infra|csflow|docs)/[\w./-]+\.(?:py|yaml|sh|example))", GUIDE))
    later = {"infra/kubernetes/overlays/site/kustomization.yaml"}
    assert [path for path in sorted(paths - later) if not (ROOT / path).exists()] == []
    makefile = (ROOT / "Makefile").read_text()
    targets = {line.split()[1] for block in BLOCKS for line in block.splitlines() if line.startswith("make ")}
    assert targets == {"images", "manifests"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


def test_services_of_the_guide_are_in_the_compose_file() -> None:
    services = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())["services"]
    started = re.findall(r"docker compose --env-file \S+ -f infra/compose.yaml (.*)", GUIDE)
    words = [word for line in started for word in line.split(" #")[0].split() if not word.startswith("-")]
    assert set(words) - {"up", "restart", "serve"} <= set(services)
    assert len(started) >= 3
