"""Explain failures of DVC's remotes in words that name the remote and the remedy.

The address and the credentials of a remote in an object store come from the environment
(:mod:`csflow.system.object_store`); none of it is ever written into a repository.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from csflow.errors import DataError
from csflow.system.object_store import CREDENTIALS, Target, is_botocore_error, store_address, typed_error

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
    """Describe why DVC failed: the most informative cause, and the remedy if it is known."""
    cause = _innermost(error)
    if not is_botocore_error(cause):
        return _plain(cause)
    return str(typed_error(cause, Target(remote_url(repository), store_address(), _NAMED_BY, _RIGHTS)))


def _innermost(error: BaseException) -> BaseException:
    """Find the most informative cause: DVC wraps the store's error repeatedly; botocore wraps only socket errors."""
    while error.__cause__ is not None and not is_botocore_error(error):
        error = error.__cause__
    return error


def _plain(error: BaseException) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)) or type(error).__name__
    if isinstance(error, FileNotFoundError) and error.errno is None and "files/md5/" in text:
        return f"{text} is missing in the remote. Where the images are complete, run 'dvc push'."
    return text


def remote_url(repository: Path) -> str:
    """Return the address of a repository's default remote in its present configuration, for messages."""
    from dvc.config import Config

    try:
        config = Config(str(repository / ".dvc"))
        return str(config["remote"][config["core"]["remote"]]["url"])
    # Whatever is wrong with the configuration, the error that is being explained matters more.
    except Exception:
        return f"the remote of {repository}"
