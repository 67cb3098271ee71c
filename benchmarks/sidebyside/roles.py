"""Map roles to drivers, each of which imports only what it measures."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from sidebyside.child import Channel

ROLES = {
    "materials": "sidebyside.materials",
    "limits": "sidebyside.limits",
    "ours-training": "sidebyside.ours_training",
    "ours-features": "sidebyside.ours_features",
    "ours-scoring": "sidebyside.ours_scoring",
    "official": "sidebyside.peers.official",
    "anomalib": "sidebyside.peers.anomalib",
    "timm": "sidebyside.peers.eager",
    "load": "servers.load",
}


def driver(role: str, folder: Path, channel: Channel, *arguments: str) -> object:
    """Make the driver of a role; every module of ``ROLES`` has a class ``Driver``."""
    made: object = import_module(ROLES[role]).Driver(folder, channel, *arguments)
    return made
