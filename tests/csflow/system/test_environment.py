"""The table of environment variables is what the code reads."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from csflow.system.environment import VARIABLES

ROOT = Path(__file__).resolve().parents[3]
LOOKS_LIKE_ONE = re.compile(r"(CSFLOW|MLFLOW|AWS)_[A-Z][A-Z0-9_]*")
CONFIG_OF_OTHERS = {"csflow/adapters/versioning/tracked.py: key"}
"""Reads whose name is a variable of the code: it only saves and restores what DVC reads."""


def sources(root: Path = ROOT) -> dict[str, ast.Module]:
    files = sorted(file for folder in ("csflow", "pipelines", "components") for file in (root / folder).rglob("*.py"))
    found = {file.relative_to(root).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in files}
    found.pop("csflow/system/environment.py", None)
    return found


def constants(*trees: ast.Module) -> dict[str, str]:
    """Text constants of modules by their names, such as ``ERROR_FILE``."""
    found: dict[str, str] = {}
    for tree in trees:
        for node in tree.body:
            if isinstance(node, ast.Assign):
                target, value = node.targets[0], node.value
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                target, value = node.target, node.value
            else:
                continue
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=True))
            for name, text in pairs:
                if isinstance(name, ast.Name) and isinstance(text, ast.Constant) and isinstance(text.value, str):
                    found[name.id] = text.value
    return found


def is_environ(node: ast.expr) -> bool:
    return isinstance(node, (ast.Attribute, ast.Name)) and ast.unparse(node).split(".")[-1] == "environ"


def read_by(node: ast.AST) -> Iterator[ast.expr]:
    """Expressions that name a variable that this node reads."""
    match node:
        case ast.Subscript(value=value, slice=name, ctx=ast.Load()) if is_environ(value):
            yield name
        case ast.Compare(left=name, ops=[ast.In() | ast.NotIn()], comparators=[value]) if is_environ(value):
            yield name
        case ast.Call(func=ast.Attribute(value=value, attr="get" | "setdefault" | "pop"), args=[name, *_]) if (
            is_environ(value)
        ):
            yield name
        case ast.Call(func=ast.Attribute(attr="getenv") | ast.Name(id="getenv"), args=[name, *_]):
            yield name
        case ast.keyword(arg="envvar", value=ast.List(elts=names)):
            yield from names
        case ast.keyword(arg="envvar", value=name):
            yield name
        case ast.Constant(value=str(text)) if LOOKS_LIKE_ONE.fullmatch(text):
            yield node


def names_read(trees: dict[str, ast.Module]) -> dict[str, str]:
    """Every variable the code names, with the file that does."""
    everywhere, found = constants(*trees.values()), dict[str, str]()
    for file, tree in trees.items():
        known = everywhere | constants(tree)  # a module's own constant wins
        for name in (name for node in ast.walk(tree) for name in read_by(node)):
            if isinstance(name, ast.Constant):
                found[str(name.value)] = file
            elif (text := known.get(ast.unparse(name).split(".")[-1])) is not None:
                found[text] = file
            elif f"{file}: {ast.unparse(name)}" not in CONFIG_OF_OTHERS:
                pytest.fail(f"{file} reads os.environ[{ast.unparse(name)}]: name the variable in a constant")
    return found


@pytest.fixture(scope="module")
def read() -> dict[str, str]:
    return names_read(sources())


def test_every_variable_that_the_code_reads_is_in_the_table(read: dict[str, str]) -> None:
    missing = {name: file for name, file in read.items() if name not in {each.name for each in VARIABLES}}
    assert not missing, f"add to csflow/system/environment.py: {missing}"


def test_the_code_reads_every_variable_of_the_table(read: dict[str, str]) -> None:
    unread = [each.name for each in VARIABLES if each.group != "library" and each.name not in read]
    assert not unread, f"nothing reads them, remove them from csflow/system/environment.py: {unread}"


def test_the_table_is_filled_in_and_names_nothing_twice() -> None:
    names = [each.name for each in VARIABLES]
    assert len(names) == len(set(names))
    for each in VARIABLES:
        assert all((each.meaning, each.default, each.example, each.used_by)), each.name
        assert each.meaning.endswith("."), each.name


@pytest.mark.parametrize(
    "code",
    [
        'os.environ["A_NAME"]',
        'os.environ.get("A_NAME", "")',
        'environ.setdefault("A_NAME", "1")',
        'os.getenv("A_NAME")',
        '"A_NAME" in os.environ',
        'OUR = "A_NAME"\nos.environ.get(OUR)',
        'OUR, OTHER = "A_NAME", 1\nos.environ[module.OUR]',
        'Option("--x", envvar="A_NAME")',
        'Option("--x", envvar=["A_NAME"])',
    ],
)
def test_a_read_is_found_however_it_is_written(code: str) -> None:
    assert set(names_read({"some/file.py": ast.parse(code)})) == {"A_NAME"}


def test_what_looks_like_one_of_ours_counts_and_what_is_only_written_does_not() -> None:
    code = 'settings = ("CSFLOW_NEW",)\nos.environ["WRITTEN"] = "1"\n"""Prose about CSFLOW_OTHER."""'
    assert set(names_read({"some/file.py": ast.parse(code)})) == {"CSFLOW_NEW"}
