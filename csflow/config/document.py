"""Read YAML text strictly: each key once, one document, plain values, and every value remembers its line.

Numbers are read as people and YAML 1.2 read them: ``1e-3`` is a number and ``010`` is ten. PyYAML's loaders follow
YAML 1.1, where the first is text and the second eight.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from csflow.errors import ConfigError

MOST_VALUES = 20_000
"""Number of values above which a text is refused: aliases of aliases can make a few lines into billions."""

KeyPath = tuple[str, ...]
"""Keys from the top to a value; the items of a list are numbers."""


class _Loader(yaml.SafeLoader):
    """Find out which plain scalars are numbers, truth values, nothing or merge keys; everything else is text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name


for _tag, _pattern, _first in (
    ("bool", r"(?:yes|no|true|false|on|off)", "yYnNtTfFoO"),
    ("int", r"[-+]?(?:0b[01_]+|0o[0-7_]+|0x[0-9a-f_]+|[0-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?(?:e[-+]?[0-9]+)?|\.[0-9][0-9_]*(?:e[-+]?[0-9]+)?|\.inf)|\.nan",
        "-+.0123456789",
    ),
    ("null", r"~|null|", "~nN\0"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}",
        re.compile(f"^(?:{_pattern})$", re.IGNORECASE),
        [*_first.replace("\0", ""), *([""] if "\0" in _first else [])],
    )


def _number(text: str) -> float:
    return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


def _whole(text: str) -> int:
    digits = text.replace("_", "").lower()
    return int(digits, 0) if re.search("[box]", digits) else int(digits)


def _text(text: str) -> str:
    text.encode()  # half of a surrogate pair, as in "\\ud800", is no character
    return text


_TRUTH = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
_SCALARS: dict[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:bool": lambda text: _TRUTH[text.lower()],
    "tag:yaml.org,2002:int": _whole,
    "tag:yaml.org,2002:float": _number,
    "tag:yaml.org,2002:null": lambda _: None,
    "tag:yaml.org,2002:str": _text,
}


class Document:
    """The values of a YAML text, and where they are written.

    Attributes:
        source: The file, for the reader.
        value: Dictionaries with text as keys, lists, texts, numbers, truth values and ``None``.
        duplicates: A sentence for each key that is there twice, with both lines; ``value`` has the first one.
    """

    def __init__(self, text: str, source: str | Path) -> None:
        """Read a text.

        Raises:
            ConfigError: If it is not YAML, or has tags, aliases into themselves or more than :data:`MOST_VALUES`
                values.
        """
        self.source = source
        self._nodes: dict[KeyPath, yaml.Node] = {}
        self._open: list[yaml.Node] = []
        self._twice: dict[str, int] = {}
        self._merges = 0
        try:
            node = yaml.compose(text, Loader=_Loader)
            self.value = None if node is None else self._value(node, ())
        except yaml.YAMLError as error:
            raise ConfigError(_not_yaml(error, text, source)) from error
        except RecursionError as error:
            raise ConfigError(
                f"{source} is nested too deeply. Expected sections with keys, such as 'data:'."
            ) from error
        self.duplicates = sorted(self._twice, key=self._twice.__getitem__)

    def line_of(self, path: KeyPath) -> int | None:
        """Return the number of the line in which a value begins, from 1; ``None`` if the text does not have it."""
        node = self._nodes.get(path)
        return None if node is None else node.start_mark.line + 1

    def written(self, path: KeyPath) -> str | None:
        """Return a number or truth value as it is written, such as ``0123`` or ``no``; ``None`` for anything else."""
        node = self._nodes.get(path)
        if not isinstance(node, yaml.ScalarNode) or node.style is not None:
            return None
        text: str = node.value
        return None if node.tag.endswith((":str", ":null")) else text

    def _value(self, node: yaml.Node, path: KeyPath) -> Any:
        self._nodes[path] = node
        if len(self._nodes) > MOST_VALUES:
            raise ConfigError(f"{self.source} has more than {MOST_VALUES} values. A line needs less than a hundred.")
        if node in self._open:
            raise ConfigError(f"{self._at(node)}: an alias leads into itself. Write the values out.")
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode) and node.tag.endswith(":map"):
                return {key: self._value(value, (*path, key)) for key, value in self._pairs(node, path).items()}
            if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
                return [self._value(item, (*path, str(index))) for index, item in enumerate(node.value)]
            return self._scalar(node)
        finally:
            self._open.pop()

    def _pairs(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, yaml.Node]:
        """Return the values by key; keys of the mapping itself win over those merged in with ``<<``."""
        merged: dict[str, yaml.Node] = {}
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if key.tag.endswith(":merge"):
                for base in self._bases(value):
                    merged = self._pairs(base, path) | merged
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{self._at(key)}: a key is a list or a section itself. Expected a name.")
            name = str(self._scalar(key)) if key.tag.endswith(":str") else str(key.value)
            if name in own:
                first = own[name][0].start_mark.line + 1
                full = ".".join((*path, name))
                self._twice[f"{self._at(key)}: key {full!r} is there already, in line {first}. Keep one."] = (
                    key.start_mark.line
                )
            else:
                own[name] = (key, value)
        return merged | {name: value for name, (_, value) in own.items()}

    def _bases(self, value: yaml.Node) -> Iterator[yaml.MappingNode]:
        for base in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            self._merges += 1
            if self._merges > MOST_VALUES:
                raise ConfigError(f"{self._at(value)}: more than {MOST_VALUES} sections are merged. Write them out.")
            if not isinstance(base, yaml.MappingNode) or base in self._open:
                raise ConfigError(f"{self._at(value)}: '<<' takes an alias of another section, such as '<<: *base'.")
            yield base

    def _scalar(self, node: yaml.Node) -> Any:
        reading = _SCALARS.get(node.tag)
        if reading is None or not isinstance(node, yaml.ScalarNode):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise ConfigError(f"{self._at(node)}: the tag {tag} is not for the YAML of a line. Leave it out.")
        try:
            return reading(node.value)
        except (ValueError, KeyError) as error:
            kind = node.tag.rpartition(":")[2]
            raise ConfigError(f"{self._at(node)}: {node.value!r} cannot be read as {kind}. Correct it.") from error

    def _at(self, node: yaml.Node) -> str:
        return f"{self.source}, line {node.start_mark.line + 1}"


def _not_yaml(error: yaml.YAMLError, text: str, source: str | Path) -> str:
    """Say in which line the text stops being YAML, and what the most likely mistake is."""
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else getattr(error, "reason", str(error))
    index = mark.index if mark else getattr(error, "position", 0)
    number = text.count("\n", 0, index) + 1
    before, line = ["", "", *text.split("\n")][number : number + 2]
    return f"{source} is not YAML, line {number}: {problem}. {_likely(problem or '', line, before)}"


def _likely(problem: str, line: str, before: str) -> str:
    if "another document" in problem:
        return "One file describes one line: remove the '---' between the two."
    if "\t" in line[: len(line) - len(line.lstrip())] or r"'\t'" in problem:
        return "It is indented with a tab: use blanks."
    if re.search(r":\s+\*", line):
        return "A value that begins with '*' needs quotes, as in cron: \"* 3 * * *\"."
    if re.search(r":\s+[@`%]", line):
        return "A value that begins with '@', '`' or '%' needs quotes."
    if any(re.fullmatch(r"\s*\w+:[^\s/].*", each) for each in (before, line)):
        return "Put a blank after the colon of a key."
    if "mapping values" in problem:
        return "A text with ': ' in it needs quotes."
    return "Check brackets, quotes and indentation there and in the line above."
