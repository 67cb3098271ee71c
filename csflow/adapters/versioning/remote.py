"""What DVC's remotes say when they fail, in words that name the remote and the remedy.

A remote in an object store is reached with what the environment names, as botocore reads it:
``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_DEFAULT_REGION`` and, for a store other than
AWS's own, ``AWS_ENDPOINT_URL``. None of it is ever written into a repository.
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
    """Refuse a remote whose address carries credentials: it would be committed.

    Raises:
        DataError: Without repeating the address.
    """
    parts = urlsplit(remote)
    if parts.password is not None or (parts.scheme == "s3" and parts.username is not None):
        raise DataError(
            f"The remote's address ({parts.scheme}://…) holds credentials, and it is committed to the repository. "
            f"Leave them out; set {CREDENTIALS} where csflow runs."
        )


def explain_failure(error: BaseException, repository: Path) -> str:
    """Describe why DVC failed: the most telling cause, and the remedy if it is known."""
    cause = _innermost(error)
    if not is_botocore_error(cause):
        return _plain(cause)
    return str(typed_error(cause, Target(remote_url(repository), store_address(), _NAMED_BY, _RIGHTS)))


def _innermost(error: BaseException) -> BaseException:
    """DVC wraps a store's own words several times; below those of botocore come only those of sockets."""
    while error.__cause__ is not None and not is_botocore_error(error):
        error = error.__cause__
    return error


def _plain(error: BaseException) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)) or type(error).__name__
    if isinstance(error, FileNotFoundError) and error.errno is None and "files/md5/" in text:
        return f"{text} is missing in the remote. Where the images are complete, run 'dvc push'."
    return text


def remote_url(repository: Path) -> str:
    """Address of a repository's default remote, as its present configuration has it; for messages."""
    from dvc.config import Config

    try:
        config = Config(str(repository / ".dvc"))
        return str(config["remote"][config["core"]["remote"]]["url"])
    # Whatever is wrong with the configuration, the error that is being explained matters more.
    except Exception:
        return f"the remote of {repository}"
