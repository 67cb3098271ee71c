"""Make pages from the code while MkDocs builds the site; ``mkdocs.yml`` names this file."""

from __future__ import annotations

import re
from typing import Any

import command_line
import line_yaml
import project
import rooms
import variables
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROLE = re.compile(r":(?:py:)?(?:class|func|meth|mod|data|attr|exc|obj):(?=<code>)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of folders into the navigation: its entries that end with a slash."""
    config.nav = navigation(config.nav or [])
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    made = generated({*(each.src_uri for each in files.documentation_pages()), *project.PAGES, "decisions/index.md"})
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Take links away that lead out of the site."""
    return project.without_links_out(markdown, page.file.src_uri)


def on_page_content(html: str, *, page: Page, **_: Any) -> str:
    """Take Sphinx's roles out of docstrings: the name itself is code already."""
    return _ROLE.sub("", html) if page.file.src_uri.startswith(f"{rooms.FOLDER}/") else html


def generated(known: set[str]) -> dict[str, str]:
    """Return the Markdown of every page that is made from the code, by path below the site.

    Args:
        known: Paths of the pages that exist, those of the repository's own included.
    """
    return {
        "reference/command-line.md": command_line.page(),
        "reference/line-yaml.md": line_yaml.page(),
        "reference/environment.md": variables.page(),
        **rooms.pages(),
        "decisions/index.md": project.decision_list(),
        **{page: project.included(page, known) for page in project.PAGES},
    }


def navigation(entries: list[Any]) -> list[Any]:
    """Return the navigation with every folder replaced by its pages."""
    folders = {
        f"{rooms.FOLDER}/": list(rooms.pages()),
        "decisions/": ["decisions/index.md", *project.decisions()],
    }

    def whole(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {title: whole(inner) for title, inner in entry.items()}
        if isinstance(entry, list):
            return [whole(each) for each in entry]
        return folders.get(entry, entry)

    return [whole(each) for each in entries]
