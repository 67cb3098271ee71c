"""Identify the code that a result depends on, so that results of other code are never taken for unchanged.

The identity of some modules is a digest over their source and that of every module they import, directly or
indirectly, at module level or inside functions. There is no list to maintain: imported modules count, and no others.
Comments, docstrings and layout do not count, so that words can be improved without retraining every line; imports
under ``if TYPE_CHECKING`` do not count, because they never run.

A package that only collects names from its modules does not count itself: a name that is taken from it counts as taken
from the module that defines it. A module that is imported by a name computed at run time must be named as a root:
nothing in the source tells of it.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path

from csflow.system.files import sha256_json


@dataclass(frozen=True)
class _Module:
    """The normalised source of a module as a digest, and the modules of the same packages that it imports."""

    digest: str
    imports: frozenset[str]


@cache
def code_version(*roots: str) -> str:
    """Digest the code of some modules and of everything they import.

    Args:
        roots: Dotted names of modules. Imports are followed inside of their top-level packages and inside of csflow.

    Returns:
        SHA-256 as 64 hexadecimal digits.

    Raises:
        ModuleNotFoundError: If there is no such module.
    """
    packages = frozenset({"csflow", *(root.partition(".")[0] for root in roots)})
    return sha256_json([[name, _module(name, packages).digest] for name in sorted(modules_of(*roots))])


def modules_of(*roots: str) -> set[str]:
    """Return the names of some modules and of all modules that they import, directly or indirectly.

    Args:
        roots: Dotted names of modules, as for :func:`code_version`.
    """
    packages = frozenset({"csflow", *(root.partition(".")[0] for root in roots)})
    found: set[str] = set()
    waiting = [name for root in roots for name in (root, *_with_parents(root))]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [each for target in _module(name, packages).imports for each in _with_parents(target)]
    return found


def _with_parents(name: str) -> Iterator[str]:
    """Yield a module and the packages around it, whose code runs too; not csflow itself, which only has the version."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        parent = ".".join(parts[:length])
        if parent != "csflow" and _file(parent) is not None and (parent == name or not _collected(parent)):
            yield parent


@cache
def _module(name: str, packages: frozenset[str]) -> _Module:
    file = _file(name)
    if file is None:
        raise ModuleNotFoundError(f"There is no module {name!r} whose code could be identified.", name=name)
    tree = _Essence().visit(ast.parse(file.read_text(encoding="utf-8")))
    text = ast.unparse(ast.fix_missing_locations(tree))
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    imports = frozenset(target for target in _imports(tree, package) if target.partition(".")[0] in packages)
    return _Module(hashlib.sha256(text.encode()).hexdigest(), imports)


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield the modules that the code of a module in ``package`` imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (_origin(_imported_from(node, package), alias.name) for alias in node.names)


def _imported_from(statement: ast.ImportFrom, package: str) -> str:
    """Return the full name of the module that ``from MODULE import …`` names, which may be relative to ``package``."""
    return resolve_name("." * statement.level + (statement.module or ""), package)


def _origin(module: str, name: str) -> str:
    """Return the module that defines a name imported from a module, which may itself have imported it."""
    submodule = f"{module}.{name}"
    return submodule if _file(submodule) is not None else _collected(module).get(name, module)


@cache
def _collected(package: str) -> dict[str, str]:
    """Return the modules that define the names of a package which does nothing but collect them; else no names."""
    file = _file(package)
    if file is None or file.name != "__init__.py":
        return {}
    origins: dict[str, str] = {}
    for statement in _Essence().visit(ast.parse(file.read_text(encoding="utf-8"))).body:
        if isinstance(statement, ast.ImportFrom):
            source = _imported_from(statement, package)
            origins |= {each.asname or each.name: _origin(source, each.name) for each in statement.names}
        elif not isinstance(statement, ast.Assign) or ast.unparse(statement.targets[0]) != "__all__":
            return {}
    return origins


@cache
def _file(name: str) -> Path | None:
    """Return the source file of a module or package; ``None`` if there is none."""
    top, _, rest = name.partition(".")
    spec = find_spec(top)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    if not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations)), *rest.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


class _Essence(ast.NodeTransformer):
    """Drops what cannot change a result: strings that are statements, and code for type checkers."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        visited = self.generic_visit(node)
        return node.orelse if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING") else visited

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if hasattr(node, "body") and isinstance(node.body, list) and not node.body and not isinstance(node, ast.Module):
            node.body = [ast.Pass()]
        return node
