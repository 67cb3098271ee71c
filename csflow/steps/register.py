"""Register the detector as a version of the line's model."""

from __future__ import annotations

from pathlib import Path

from csflow.progress import say
from csflow.steps.context import RunContext, step
from csflow.workspace import Workspace


def register(context_path: str | Path, detector_path: str | Path) -> int:
    """Register once per content key; a repeated call finds the same version.

    Returns:
        The version, 0 if nothing changed and so nothing was registered.

    Raises:
        RegistryError: If the registry cannot be reached.
        ModelError: If the detector directory is incomplete.
    """
    context = RunContext.load(Path(context_path))
    if context.unchanged:
        return 0
    with step("register", context):
        from csflow.adapters import registry

        version = registry.register(
            Workspace.from_environment(), context.line, context.run_id, Path(detector_path), context.content_key
        )
        say(f"register: {context.line.model_name} version {version}")
        return version
