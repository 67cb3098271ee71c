"""Generate the JSON schema of a line's YAML file, by which editors complete and check its keys.

``make schema`` writes it to ``csflow/config/line.schema.json``; the first line of a YAML file names it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from csflow.config.line import LineConfig
from csflow.config.presets import presets
from csflow.system.files import write_json

FILE = Path(__file__).with_name("line.schema.json")


def line_schema() -> dict[str, Any]:
    """Return the JSON schema of a line's YAML file.

    With a preset the file need not give what the preset gives; ``line`` and ``data`` are always its own.
    """
    schema = LineConfig.model_json_schema(mode="validation")
    name = {"type": "string", "enum": sorted(presets())}
    schema["properties"]["preset"] = {
        "title": "Preset",
        "description": "One or several presets that underlie the keys of this file; later ones win.",
        "anyOf": [name, {"type": "array", "items": name}],
        "examples": ["paper-mtd", ["paper-mtd", "official"]],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A csflow product line",
        **{key: value for key, value in schema.items() if key != "title"},
    }


if __name__ == "__main__":
    write_json(FILE, line_schema())
    print(f"wrote {FILE}")
