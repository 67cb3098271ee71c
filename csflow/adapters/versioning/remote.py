"""Explain failures of DVC's remotes in words that name the remote and the remedy.

The address and the credentials of a remote in an object store come from the environment
(:mod:`csflow.system.object_store`); none of it is ever written into a repository.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

from csflow.errors import DataError
from csflow.system.object_store import CREDENTIALS, Target, is_botocore_error, store_address, typed_error

REMEDY = (
    "Where the images are complete, run 'dvc push'; delete damaged copies from the remote and the cache first "
    "(files/md5/XX/REST below each)."
)
"""What to do about objects that are missing or damaged."""

_NAMED_BY = "the remote's url in .dvc/config"
_RIGHTS = "s3:ListBucket and s3:GetObject (to add images also s3:PutObject)"


def refuse_secrets(remote: str) -> None:
    """Refuse a remote whose address contains credentials, because it would be committed.

    Raises:
        DataError: If it does; the message does not repeat the address.
    """
    parts = urlsplit(remote)
    if parts.password is not None or (parts.scheme == "s3" and parts.username is not None):
        raise DataError(
            f"The remote's address ({parts.scheme}://…) contains credentials, and it is committed to the repository. "
            f"Leave them out; set {CREDENTIALS} where csflow runs."
        )


def explain_failure(error: BaseException, repository: Path) -> str:
    """Describe why DVC failed: the most informative cause, and the remedy if it is known.

    Args:
        error: What DVC raised.
        repository: Folder of the DVC repository, which has ``.dvc/``.
    """
    cause = _innermost(error)
    if not is_botocore_error(cause):
        return _plain(cause, repository)
    return str(typed_error(cause, Target(remote_url(repository), store_address(), _NAMED_BY, _RIGHTS)))


def _innermost(error: BaseException) -> BaseException:
    """Find the most informative cause: DVC wraps the store's error repeatedly; botocore wraps only socket errors."""
    while error.__cause__ is not None and not is_botocore_error(error):
        error = error.__cause__
    return error


def _plain(error: BaseException, repository: Path) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)) or type(error).__name__
    if isinstance(error, FileNotFoundError) and (
        missing := re.search(r"files/md5/([0-9a-f]{2})/([0-9a-f.dir]+)", text)
    ):
        return _missing(str(error.filename or text), "".join(missing.groups()), repository)
    if isinstance(error, json.JSONDecodeError):
        return f"a list of files in the cache or the remote is damaged ({text}). {REMEDY}"
    if "is corrupted" in text:
        return f"{text} in the cache or the remote. {REMEDY}"
    return text


def _missing(place: str, name: str, repository: Path) -> str:
    """Say why DVC finds an object neither in the cache nor in a remote; ``place`` is where it looked last."""
    what = f"{'the list of files' if name.endswith('.dir') else 'the file'} {name}"
    url = _default_remote(repository)
    if url is None:
        return (
            f"{what} is not in the cache, and the DVC repository names no default remote. A remote in "
            ".dvc/config.local is not cloned: run 'dvc remote add --default NAME URL' without --local, and commit "
            ".dvc/config."
        )
    if "://" not in url and not Path(url).is_dir():
        return f"{what} is not in the cache, and the remote {url} is not there. Mount it, or correct .dvc/config."
    return f"{place} is missing in the remote. Where the images are complete, run 'dvc push'."


def remote_url(repository: Path) -> str:
    """Return the address of a repository's default remote in its present configuration, for messages."""
    return _default_remote(repository) or f"the remote of {repository}"


def _default_remote(repository: Path) -> str | None:
    from dvc.config import Config

    try:
        config = Config(str(repository / ".dvc"))
        return str(config["remote"][config["core"]["remote"]]["url"])
    # Whatever is wrong with the configuration, the error that is being explained matters more.
    except Exception:
        return None
