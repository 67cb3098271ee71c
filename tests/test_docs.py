"""The documentation site: no page is left out, the reference is complete, and nothing is loaded from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import command_line
import hook
import keys
import line_yaml
import pytest
import variables
import yaml
from mkdocs.config import load_config
from pydantic import TypeAdapter

from csflow.config import load_line, presets
from csflow.system.environment import VARIABLES

ROOT = Path(__file__).resolve().parents[1]
ALL_KEYS = list(keys.keys())


def pages_of(entry: Any) -> Iterator[str]:
    """Paths of pages in a part of the navigation."""
    if isinstance(entry, str):
        yield entry
    for each in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        yield from pages_of(each)


@pytest.fixture(scope="module")
def navigation() -> list[str]:
    return list(pages_of(hook.navigation(load_config(str(ROOT / "mkdocs.yml")).nav or [])))


def headings(page: str) -> set[str]:
    return set(re.findall(r"^#+ (.*)$", page, flags=re.MULTILINE))


def test_every_page_is_in_the_navigation_once(navigation: list[str]) -> None:
    written = {file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.md")}
    assert len(navigation) == len(set(navigation))
    assert set(navigation) == written | hook.generated(set()).keys()


def test_a_new_room_and_a_new_decision_come_in_by_themselves(tmp_path: Path) -> None:
    (tmp_path / "csflow/oven").mkdir(parents=True)
    (tmp_path / "csflow/oven/__init__.py").write_text('"""Bake the ``bread``."""\n')
    (tmp_path / "csflow/oven/heat.py").write_text('"""Keep it hot."""\n\ndef warm() -> None:\n    """Warm up."""\n')
    (tmp_path / "csflow/plate.py").write_text('"""Hold it."""\n')
    made = hook.rooms.pages(tmp_path)
    assert list(made) == [f"reference/api/{name}.md" for name in ("index", "oven", "plate")]
    assert "Bake the `bread`." in made["reference/api/index.md"]
    assert "::: csflow.oven.heat\n" in made["reference/api/oven.md"]
    assert "::: csflow.plate\n" in made["reference/api/plate.md"]

    (tmp_path / "docs/decisions").mkdir(parents=True)
    (tmp_path / "docs/decisions/099-bread.md").write_text("# 099 Bread\n\nRolls.\n")
    assert hook.project.decisions(tmp_path) == {"decisions/099-bread.md": "099 Bread"}
    assert "- [099 Bread](099-bread.md)" in hook.project.decision_list(tmp_path)


def test_the_page_of_commands_has_every_command_and_option() -> None:
    page = command_line.page()
    names = command_line.names()
    assert {"csflow score", "csflow data add", "csflow import mtd"} <= set(names)
    assert set(names) <= headings(page)
    taken = "`(the line's serving.takt_ms)`"
    assert f"| `--takt-ms <number>` | Most milliseconds one image may take. Allowed: `x>=0.001`. | {taken} |" in page
    assert re.search(r"^## Judge$", page, flags=re.MULTILINE)


def test_the_page_of_keys_has_every_key_and_preset() -> None:
    page = line_yaml.page()
    assert {key.path for key in ALL_KEYS} | {"preset", *presets()} <= headings(page)
    assert "### training.averaging\n\nKeep the mean of the weights" in page
    assert "**Allowed:** number, above 0, at most 1, or null. **Default:** `null`." in page
    assert "```yaml\ntraining: {averaging: 0.25}\n```" in page


@pytest.mark.parametrize("key", ALL_KEYS, ids=lambda key: key.path)
def test_the_example_of_a_key_is_valid(key: keys.Key) -> None:
    if key.inner is not None and not key.listed and key.example in (None, {}):
        return
    assert key.example is not None, f"give {key.path} a value in docs/generate/examples.yaml, or examples= in its field"
    adapter = TypeAdapter(key.field.rebuild_annotation())
    adapter.validate_json(json.dumps(key.example), strict=True)


def test_examples_are_of_keys_that_exist() -> None:
    assert keys.examples().keys() <= {key.path for key in ALL_KEYS}


def test_both_files_at_the_top_of_the_page_are_lines(tmp_path: Path) -> None:
    whole = tmp_path / "bolts.yaml"
    whole.write_text("\n".join(line_yaml.complete()), encoding="utf-8")
    assert load_line(whole).line == load_line(line_yaml.EXAMPLE).line == "bolts"
    assert set(yaml.safe_load(whole.read_text())) == {key.name for key in ALL_KEYS if not key.section}


def test_the_page_of_variables_has_every_variable() -> None:
    assert {each.name for each in VARIABLES} <= headings(variables.page())


def test_links_of_the_repositorys_own_pages_lead_to_pages_of_the_site() -> None:
    page = hook.project.included("contributing.md", {"decisions/index.md", "changelog.md"})
    assert "[`docs/decisions/`](decisions/index.md)" in page
    assert "[`CHANGELOG.md`](changelog.md)" in page
    assert "see SECURITY.md." in page  # not a page of the site here
    assert "](security.md)" in hook.project.included("contributing.md", {"security.md"})


def test_a_link_out_of_the_site_becomes_text() -> None:
    text = "[a](../benchmarks/x.json), [b](guides/scale.md), [c](https://example.org/), [d](#here)"
    assert hook.project.without_links_out(text, "index.md") == text.replace("[a](../benchmarks/x.json)", "a")
    assert hook.project.without_links_out("[b](../index.md)", "guides/scale.md") == "[b](../index.md)"


class Loaded(HTMLParser):
    """What a page makes a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag in {"script", "img", "iframe", "source", "video", "audio", "embed"}:
            self.found.append(values.get("src", "") or values.get("srcset", ""))
        if tag == "link" and values.get("rel") not in {"canonical", "next", "prev"}:
            self.found.append(values.get("href", ""))


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert {"index.html", "changelog.html", "404.html"} <= {page.name for page in pages}
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert not [url for url in loaded.found if re.match(r"(https?:)?//", url)], page
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet
    # Search works from the file system: its worker runs in a frame that comes with the site.
    assert 'src="javascripts/iframe-worker.js"' in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "search/search_index.js").is_file()
