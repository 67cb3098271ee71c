"""Images of a Docker engine."""

from __future__ import annotations

import subprocess


def revision_of(image: str) -> str:
    """The commit that an image's label names; empty if the engine has no such image."""
    label = '--format={{index .Config.Labels "org.opencontainers.image.revision"}}'
    found = subprocess.run(["docker", "image", "inspect", label, image], capture_output=True, text=True, check=False)
    return found.stdout.strip()
