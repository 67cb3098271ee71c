"""Write one page for every room of csflow, that is, every package and module right below ``csflow/``."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

from markup import cell, table

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "reference/api"


def pages(root: Path = ROOT) -> dict[str, str]:
    """Return Markdown by path below the site: the pages of all rooms, and the list of them."""
    found = {f"{FOLDER}/{room.name.removesuffix('.py')}.md": _room(room, root) for room in rooms(root)}
    rows = [
        (f"[`csflow.{Path(path).stem}`]({Path(path).name})", _about(room))
        for path, room in zip(found, rooms(root), strict=True)
    ]
    about = "Each package answers one question; [Architecture](../../architecture.md) says which may import which."
    return {f"{FOLDER}/index.md": f"# Python API\n\n{about}\n\n{table(('Package', 'What it does'), rows)}", **found}


def rooms(root: Path = ROOT) -> list[Path]:
    """Return packages and modules right below ``csflow/``, in alphabetical order."""
    packages = [each.parent for each in (root / "csflow").glob("*/__init__.py")]
    modules = [each for each in (root / "csflow").glob("*.py") if not each.name.startswith("_")]
    return sorted([*packages, *modules], key=lambda each: each.stem)


def _room(room: Path, root: Path) -> str:
    """The page of one room: its docstring, a table of its modules, and what each defines."""
    name = _dotted(room, root)
    modules = list(_modules(room))
    if room.is_file():
        return (
            f"# {name}\n\n::: {name}\n    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n"
        )
    anchors = [_dotted(each, root) for each in modules]
    rows = [(f"[`{anchor}`](#{anchor})", _about(each)) for anchor, each in zip(anchors, modules, strict=True)]
    parts = "".join(f"::: {anchor}\n\n" for anchor in anchors)
    return f"# {name}\n\n{_about(room)}\n\n{table(('Module', 'What it does'), rows)}\n{parts}"


def _modules(room: Path) -> Iterator[Path]:
    """Modules of a room that define something, sub-packages included."""
    for file in sorted(room.rglob("*.py")):
        if file.name == "__main__.py":
            continue
        body = ast.parse(file.read_text(encoding="utf-8")).body
        if file.name != "__init__.py" or any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in body):
            yield file.parent if file.name == "__init__.py" else file


def _dotted(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts)


def _about(path: Path) -> str:
    """The first paragraph of a module's docstring."""
    file = path / "__init__.py" if path.is_dir() else path
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return cell(inspect.cleandoc(text).split("\n\n")[0].replace("``", "`"))
