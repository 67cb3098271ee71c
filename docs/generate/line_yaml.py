"""Write the page about a line's YAML file from the models that check it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from keys import Key, keys

from csflow.config import presets

EXAMPLE = Path(__file__).with_name("bolts.yaml")

_TOP = """# A line's YAML file

`lines/NAME.yaml` says everything that csflow knows about one product line. Only `line` and `data.path` are required;
all other keys have defaults. Unknown keys and wrong types are errors that name the key and what is allowed there.

```yaml title="lines/bolts.yaml"
{example}```

??? example "Every key in one file, with its default"

    Keys with `#` in front are absent by default; they show an example.

{complete}

Keys are written below as `section.key`: `training.epochs` is the key `epochs` in the section `training`.

## Top level

### preset

Lays the keys of one or more presets underneath those of the file; of several, later ones win. See [presets](#presets).

**Allowed:** name of a preset, or a list of names. **Default:** none.

```yaml
preset: paper-mtd
```

"""

_PRESETS = """## Presets

A preset is a set of keys under a name. Keys of the file win over those of the preset.

"""


def page() -> str:
    """Return the page as Markdown: every key with type, bounds, default, meaning and example."""
    whole = "    ```yaml\n" + "".join(f"    {line}\n" for line in complete()) + "    ```"
    parts = [_TOP.format(example=EXAMPLE.read_text(encoding="utf-8"), complete=whole)]
    found = list(keys())
    parts += [_entry(key) for key in found if not key.section and key.inner is None]
    for opened in (key for key in found if key.inner is not None):
        assert opened.inner is not None
        parts.append(f"## {opened.path}\n\n{inspect.getdoc(opened.inner) or ''}\n\n{_facts(opened)}\n\n")
        parts += [_entry(key) for key in found if key.section == opened.path and key.inner is None]
    parts.append(_PRESETS)
    for name, content in presets().items():
        parts.append(f"### {name}\n\n```yaml\npreset: {name}\n```\n\nstands for\n\n```yaml\n{_yaml(content)}```\n\n")
    return "".join(parts)


def _entry(key: Key) -> str:
    """The paragraph of one key."""
    meaning = f"{key.meaning}\n\n" if key.meaning else ""
    return f"### {key.path}\n\n{meaning}{_facts(key)}\n\n```yaml\n{_nested(key)}```\n\n"


def _facts(key: Key) -> str:
    if key.inner is not None and not key.listed:
        default = "absent" if key.default is None and not key.required else "the defaults of its keys"
        other = key.allowed.removeprefix("section").removeprefix(", or ")
        other = "" if other in ("", "null") else f" **Also allowed:** {other}."
        return f"**Default:** {'required' if key.required else default}.{other}"
    default = "required" if key.required else f"`{_flow(key.default)}`"
    return f"**Allowed:** {key.allowed}. **Default:** {default}."


def _nested(key: Key) -> str:
    """YAML that sets the key to its example, inside of its sections."""
    value: Any = {key.name: key.example}
    section = key.section
    while section:
        outer, _, name = section.rpartition(".")
        value, section = {name: [value] if section in _lists() else value}, outer
    return _yaml(value)


@cache
def _lists() -> frozenset[str]:
    """Keys whose value is a list of sections."""
    return frozenset(key.path for key in keys() if key.listed)


def complete() -> Iterator[str]:
    """Every key with its default, or its example where the default is to be absent, as lines of YAML."""
    for key in keys():
        depth = key.section.count(".") + 1 if key.section else 0
        if key.section in _lists():
            continue
        if key.inner is not None and not key.listed:
            yield f"{key.name}:"
            continue
        absent = not key.required and key.default is None
        value = key.example if absent or key.required else key.default
        line = f"{'  ' * depth}{'# ' if absent else ''}{key.name}: {_flow(value)}"
        yield f"{line:<44} # {' '.join(key.meaning.split())}" if key.meaning else line


def _yaml(value: dict[str, Any]) -> str:
    style = None if any(isinstance(each, dict) for each in value.values()) else False
    return yaml.safe_dump(value, sort_keys=False, default_flow_style=style, allow_unicode=True, width=100)


def _flow(value: Any) -> str:
    """A value on one line."""
    text = yaml.safe_dump(value, sort_keys=False, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
