"""Read the presets that a line's YAML can build on."""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml


def presets() -> dict[str, dict[str, Any]]:
    """Return all presets by name, as ``csflow/config/presets/`` has them."""
    folder = resources.files("csflow.config") / "presets"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): yaml.safe_load(f.read_text()) for f in files}


def merged_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge two configurations section by section; where both have a key, ``above`` wins."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged_over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
