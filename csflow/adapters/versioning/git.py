"""Run git independently of the caller's repository, locale and identity."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from csflow.errors import DataError

INHERITED = frozenset(
    f"GIT_{name}"
    for name in (
        "ALTERNATE_OBJECT_DIRECTORIES", "CEILING_DIRECTORIES", "COMMON_DIR", "CONFIG", "DIR",
        "DISCOVERY_ACROSS_FILESYSTEM", "GLOB_PATHSPECS", "GRAFT_FILE", "ICASE_PATHSPECS", "IMPLICIT_WORK_TREE",
        "INDEX_FILE", "INTERNAL_SUPER_PREFIX", "LITERAL_PATHSPECS", "NAMESPACE", "NOGLOB_PATHSPECS",
        "NO_REPLACE_OBJECTS", "OBJECT_DIRECTORY", "PREFIX", "QUARANTINE_PATH", "REPLACE_REF_BASE", "SHALLOW_FILE",
        "WORK_TREE",
    )
)  # fmt: skip
"""Variables that a hook or another git process sets: they would redirect every call to its own repository."""


def git(*arguments: str, repository: Path | None = None) -> str:
    """Run ``git ARGUMENTS`` in ``repository`` and return its output.

    Raises:
        DataError: If git fails, with its error message, or is not installed.
    """
    environment = {key: value for key, value in os.environ.items() if key not in INHERITED}
    # A folder may be called "*" or ":(top)": names are names, and no patterns.
    environment |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_LITERAL_PATHSPECS": "1"}
    where = ["-C", str(repository)] if repository else []
    try:
        result = subprocess.run(
            ["git", *where, *arguments],
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",  # a name or a file may have any bytes
            check=False,
        )
    except FileNotFoundError as error:
        raise DataError("git is not installed. Install it; data revisions are git revisions.") from error
    if result.returncode != 0:
        words = result.stderr.strip().removeprefix("fatal: ") or f"exit code {result.returncode}"
        raise DataError(f"git {arguments[0]} failed in {repository or Path.cwd()}: {words}")
    return result.stdout


def commit(repository: Path, files: list[Path], message: str) -> str:
    """Commit exactly ``files``, whatever else is staged.

    Without a configured identity the author is ``csflow``. Unchanged files make no commit.

    Returns:
        Full id of the commit that now contains them.
    """
    names = [file.relative_to(repository).as_posix() for file in files]
    git("add", "--", *names, repository=repository)
    if git("status", "--porcelain", "--", *names, repository=repository):
        identity = [] if has_identity(repository) else ["-c", "user.name=csflow", "-c", "user.email=csflow@localhost"]
        git(*identity, "commit", "--quiet", "--message", message, "--", *names, repository=repository)
    return git("rev-parse", "HEAD", repository=repository).strip()


def has_identity(repository: Path) -> bool:
    """Return True if git has a configured identity for commits in ``repository`` and need not guess one."""
    try:
        for role in ("AUTHOR", "COMMITTER"):
            git("-c", "user.useConfigOnly=true", "var", f"GIT_{role}_IDENT", repository=repository)
    except DataError:
        return False
    return True
