"""Print any text on any terminal, and read and write files as UTF-8 whatever the locale is."""

from __future__ import annotations

import codecs
import locale
import os
import sys


def use_utf8() -> None:
    """Start the program again in Python's UTF-8 mode if its locale has another encoding.

    Otherwise files with an umlaut could neither be read nor written under ``LC_ALL=C``, by this process and by those
    that it starts. What is printed keeps the encoding of the terminal.
    """
    encoding = codecs.lookup(locale.getencoding()).name
    if sys.flags.utf8_mode or encoding == "utf-8":
        return
    os.environ.setdefault("PYTHONIOENCODING", f"{encoding}:replace")
    os.environ["PYTHONUTF8"] = "1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def replace_unprintable() -> None:
    """Print a question mark for every character that the terminal's encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and stream.errors != "backslashreplace":
            reconfigure(errors="replace")
