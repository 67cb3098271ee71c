"""Check out a line's images at its revision and list them in a manifest."""

from __future__ import annotations

from csflow.adapters.versioning import CheckedOut, checkout
from csflow.config import LineConfig
from csflow.data.manifest import Manifest, build_manifest
from csflow.system.workspace import Workspace


def materialise(line: LineConfig, workspace: Workspace) -> tuple[Manifest, CheckedOut]:
    """Check out the line's data into the workspace, verify every file, and list the images.

    Returns:
        The manifest of the images, and what was checked out.

    Raises:
        DataError: If the data is incomplete, damaged or not available, or its layout is wrong.
    """
    checked_out = checkout(line.data, workspace.data / line.line)
    return build_manifest(checked_out.root, line=line.line, roles=line.roles), checked_out
