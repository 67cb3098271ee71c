"""Bring pages of the repository into the site, and find links that would lead out of it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
"""Pages of the site that are files of the repository."""

_LINK = re.compile(r"(?<!!)\[([^\[\]]+)\]\(([^()\s]+)\)")


def decisions(root: Path = ROOT) -> dict[str, str]:
    """Return the titles of all decisions by their path below ``docs/``, in the order of their numbers."""
    files = sorted((root / "docs/decisions").glob("[0-9]*.md"))
    return {f"decisions/{each.name}": each.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for each in files}


def decision_list(root: Path = ROOT) -> str:
    """Return the page that lists the decisions."""
    lines = [f"- [{title}]({Path(path).name})\n" for path, title in decisions(root).items()]
    return (
        "# Decisions\n\nWhat was decided about csflow and why, with the measurements behind it. An older decision is "
        "not rewritten: a new one replaces it.\n\n" + "".join(lines)
    )


def included(page: str, known: Collection[str], root: Path = ROOT) -> str:
    """Return a page of the repository's top folder as a page of the site.

    Args:
        page: Path below the site, a key of ``PAGES``.
        known: Paths of all pages of the site.
        root: Folder of the repository.
    """
    names = {source: target for target, source in PAGES.items()} | {"SECURITY.md": "security.md"}

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        path, _, anchor = target.partition("#")
        inside = names.get(path, path.removeprefix("docs/"))
        inside = inside + "index.md" if inside.endswith("/") else inside
        if "://" in target or not path:
            return match[0]
        return f"[{text}]({inside}{'#' + anchor if anchor else ''})" if inside in known else text

    return _LINK.sub(link, (root / PAGES[page]).read_text(encoding="utf-8"))


def without_links_out(text: str, page: str) -> str:
    """Return a page whose links to files outside of ``docs/`` are plain text, because the site does not have them."""

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), match[2]))
        return match[1] if "://" not in match[2] and target.startswith("..") else match[0]

    return _LINK.sub(link, text)
