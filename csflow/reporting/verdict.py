"""Write the gate's decision about a version at the top of its report, which is older than the decision."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from csflow.system.files import write_atomic

_START, _END = "<!-- verdict -->", "<!-- /verdict -->"


def unjudged() -> str:
    """Return the HTML that :func:`write_verdict` replaces."""
    return _marked('<p class="verdict quiet">Not registered yet: the gate decides after this page is written.</p>')


def write_verdict(page: Path, *, version: int, outcome: str, reason: str) -> bool:
    """Put version and decision at the top of a report, in place of an earlier decision.

    Args:
        page: The ``report.html``; rewritten at once or not at all.
        version: Number of the registered version.
        outcome: For instance ``promoted`` or ``kept_worse``.
        reason: The reason, in sentences.

    Returns:
        False if the page has no place for a decision, because an older csflow wrote it.
    """
    before = page.read_text(encoding="utf-8")
    kind = "good" if outcome == "promoted" else "bad"
    said = f"<b>Version {version}: {escape(outcome.replace('_', ' '))}.</b> {escape(reason)}"
    block = _marked(f'<p class="verdict {kind}">{said}</p>')
    after, found = re.subn(f"{_START}.*?{_END}", lambda _: block, before, count=1, flags=re.DOTALL)
    if found:
        write_atomic(page, after)
    return bool(found)


def _marked(text: str) -> str:
    return f"{_START}{text}{_END}"
