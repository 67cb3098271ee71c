"""Write the page about the command line from the commands themselves: what ``--help`` says, for all of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer
import typer.main
from markup import cell, table

_EXTRA = re.compile(r"\s*\[([^\[\]]*)\]\s*$")
_TYPES = {
    "str": "text", "int": "number", "float": "number", "int range": "number", "float range": "number",
    "list[str]": "text", "list[Path]": "path", "list[int]": "number",
}  # fmt: skip
_OTHERS = "Other commands"

_TOP = """# Command line

{about}

Every command says the same with `--help`. It ends with exit status 0, or 2 for wrong usage and 1 for any other failure.

"""


def page() -> str:
    """Return the page as Markdown: every command with its help, arguments, options and defaults."""
    from csflow.cli.app import app

    root = typer.main.get_command(app)
    context = typer.Context(root, info_name="csflow")
    parts = [_TOP.format(about=_text(root.help))]
    for panel, names in _panels(root).items():
        parts.append(f"## {re.sub(r'^[0-9]+[.] ', '', panel)}\n\n")
        for name in names:
            parts += _command(_commands(root)[name], name, context)
    return "".join(parts)


def names() -> list[str]:
    """Return the full name of every command, such as ``csflow data show``, in the order of the page."""
    from csflow.cli.app import app

    return list(_names(typer.main.get_command(app), "csflow"))


def _names(command: Any, name: str) -> Iterator[str]:
    for each, inner in _commands(command).items():
        yield f"{name} {each}"
        yield from _names(inner, f"{name} {each}")


def _commands(command: Any) -> dict[str, Any]:
    """The visible commands below a command, in the order in which they were registered."""
    return {name: each for name, each in getattr(command, "commands", {}).items() if not each.hidden}


def _panels(root: Any) -> dict[str, list[str]]:
    """Names of commands by the panel that they are shown in."""
    found: dict[str, list[str]] = {}
    for name, command in _commands(root).items():
        panel = getattr(command, "rich_help_panel", None)
        found.setdefault(panel if isinstance(panel, str) else _OTHERS, []).append(name)
    return found


def _command(command: Any, name: str, parent: Any) -> Iterator[str]:
    """The section of one command, then those of the commands below it."""
    context = typer.Context(command, info_name=name, parent=parent)
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    usage = re.sub(r"\{([^{}]+)\}", lambda match: match[1].upper(), usage)
    yield f"### {context.command_path}\n\n{_text(command.help)}\n\n```\n{usage}\n```\n\n"
    records = [(each.param_type_name, each.get_help_record(context)) for each in command.params]
    for kind, title in (("argument", "Argument"), ("option", "Option")):
        rows = [_row(*record) for each, record in records if each == kind and record is not None]
        if rows:
            yield table((title, "Meaning", "Default"), rows) + "\n"
    for each, inner in _commands(command).items():
        yield from _command(inner, each, context)


def _row(declared: str, text: str) -> tuple[str, str, str]:
    """Declaration, meaning and default of a parameter, from what its help says."""
    default, limits = "", list[str]()
    while match := _EXTRA.search(text):
        text = text[: match.start()]
        for part in match[1].split("; "):
            if part.startswith("default: "):
                default = f"`{part.removeprefix('default: ')}`"
            elif part == "required":
                default = "required"
            elif part.startswith("env var: "):
                limits.append(f"Also taken from the environment variable `{part.removeprefix('env var: ')}`.")
            else:
                limits.append(f"Allowed: `{part}`.")
    name = re.sub(r"<([^<>]*)>", lambda match: f"<{_TYPES.get(match[1], match[1])}>", declared)
    return f"`{cell(name)}`", cell(" ".join([text, *limits])), cell(default)


def _text(text: str | None) -> str:
    """Help text as Markdown: placeholders in capitals with brackets stay as they are."""
    cleaned = inspect.cleandoc(text or "").replace("\f", "").replace("\b", "")
    return re.sub(r"``([^`]+)``", r"`\1`", cleaned).replace("<", "&lt;")
