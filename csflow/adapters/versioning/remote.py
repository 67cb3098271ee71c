"""What DVC's remotes say when they fail, in words that name the remote and the remedy.

A remote in an object store is reached with what the environment names, as botocore reads it:
``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_DEFAULT_REGION`` and, for a store other than
AWS's own, ``AWS_ENDPOINT_URL``. None of it is ever written into a repository.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from csflow.errors import DataError

_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_DENIED = frozenset({"403", "AccessDenied", "Forbidden", "AllAccessDisabled"})
_WRONG_KEY = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken"})


def refuse_secrets(remote: str) -> None:
    """Refuse a remote whose address carries credentials: it would be committed.

    Raises:
        DataError: Without repeating the address.
    """
    parts = urlsplit(remote)
    if parts.password is not None or (parts.scheme == "s3" and parts.username is not None):
        raise DataError(
            f"The remote's address ({parts.scheme}://…) holds credentials, and it is committed to the repository. "
            f"Leave them out; set {_KEYS} where csflow runs."
        )


def explain(error: BaseException, repository: Path) -> str:
    """The cause that says most, in front of what to do about it if that is known."""
    cause = _innermost(error)
    return _explain_store(cause, repository) or _plain(cause)


def _innermost(error: BaseException) -> BaseException:
    """DVC wraps a store's own words several times; below those of botocore come only those of sockets."""
    while error.__cause__ is not None and not type(error).__module__.startswith("botocore"):
        error = error.__cause__
    return error


def _plain(error: BaseException) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)) or type(error).__name__
    if isinstance(error, FileNotFoundError) and error.errno is None and "files/md5/" in text:
        return f"{text} is missing in the remote. Where the images are complete, run 'dvc push'."
    return text


def _explain_store(error: BaseException, repository: Path) -> str:
    """For errors of an object store; '' for others."""
    if not type(error).__module__.startswith("botocore"):
        return ""
    from botocore.exceptions import ConnectionError as NotConnected
    from botocore.exceptions import HTTPClientError, NoCredentialsError, PartialCredentialsError

    store, place = f"the store at {os.environ.get('AWS_ENDPOINT_URL', 'AWS')}", remote_url(repository)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return f"{place} needs credentials, and the environment holds none that are complete. Set {_KEYS}."
    if isinstance(error, NotConnected | HTTPClientError):
        return f"{store} does not answer ({_plain(error)}). Check AWS_ENDPOINT_URL and the network."
    answer: Mapping[str, str] = getattr(error, "response", {}).get("Error", {})
    code = answer.get("Code", "")
    said = f"({code}: {answer.get('Message', '')})"
    if code == "NoSuchBucket":
        return f"{store} has no bucket for {place} {said}. Create it, or correct the remote's url in .dvc/config."
    if code in _WRONG_KEY:
        return f"{store} does not accept the credentials for {place} {said}. Correct {_KEYS}."
    if code in _DENIED:
        return (
            f"{store} denies access to {place} {said}. Check {_KEYS}, and that their user may list the bucket, "
            "read and, to add images, write there (s3:ListBucket, s3:GetObject, s3:PutObject)."
        )
    return ""


def remote_url(repository: Path) -> str:
    """Address of a repository's default remote, as its present configuration has it; for messages."""
    from dvc.config import Config

    try:
        config = Config(str(repository / ".dvc"))
        return str(config["remote"][config["core"]["remote"]]["url"])
    # Whatever is wrong with the configuration, the error that is being explained matters more.
    except Exception:
        return f"the remote of {repository}"
