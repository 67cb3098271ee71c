"""Reach an object store that speaks S3, and explain its errors in words that name the cause and the remedy.

The store, the credentials and the region come from the environment, as botocore reads it: ``AWS_ENDPOINT_URL`` for a
store other than AWS's own, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY`` and ``AWS_DEFAULT_REGION``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from csflow.errors import StorageError, StoreUnreachableError

CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_NETWORK = "AWS_ENDPOINT_URL and the network"

_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden", "UnauthorizedAccess"}
_UNKNOWN_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity", "AuthFailure", "401", "Unauthorized"}
_EXPIRED = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestExpired"}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_BUSY = {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "500", "502", "503", "504"}
_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "301", "IllegalLocationConstraintException"}


@dataclass(frozen=True)
class Target:
    """What a call to an object store is about, as error messages name it.

    Attributes:
        uri: ``s3://BUCKET/KEY``.
        address: URL of the store, or ``AWS``.
        named_by: The setting to correct if the bucket or the key is wrong, for instance ``CSFLOW_STORE``.
        rights: The permissions that the credentials need, for instance ``s3:GetObject``.
    """

    uri: str
    address: str
    named_by: str
    rights: str

    @property
    def bucket(self) -> str:
        """Return the address of the bucket, ``s3://BUCKET``."""
        return "/".join(self.uri.split("/")[:3])


def store_address(endpoint_url: str | None = None) -> str:
    """Return the URL that a client connects to: the one given, else the environment's, else ``AWS``."""
    return endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"


def make_client(endpoint_url: str | None = None, *, attempts: int | None = None, connections: int = 10) -> Any:
    """Make a boto3 client that retries after temporary failures and does not wait for ever.

    Args:
        endpoint_url: URL of an S3-compatible store; by default the environment's.
        attempts: Calls in all before a request is given up; by default AWS_MAX_ATTEMPTS, else botocore's own number.
        connections: Connections that are kept open at once.

    Returns:
        The client, which several threads may use.

    Raises:
        StorageError: If boto3 is not installed.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise StorageError("Object stores need the package boto3. Install csflow[train].") from error

    limit = {} if attempts is None else {"total_max_attempts": attempts}
    config = Config(
        # "standard" backs off exponentially, with jitter, after temporary failures.
        retries={"mode": "standard", **limit},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=connections,
        # We send SHA-256 ourselves; the default's trailing CRC is refused by some S3-compatible stores.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint_url, config=config)


def refusal_code(error: BaseException) -> str:
    """Return the store's own word for a refusal, for instance ``NoSuchKey``; an empty string for other errors."""
    answer = getattr(error, "response", None) or {}
    return str(answer.get("Error", {}).get("Code", ""))


def is_missing(error: BaseException) -> bool:
    """Return True if the object does not exist; a missing bucket looks the same in an answer without a body."""
    return refusal_code(error) in _MISSING


def passes_by_itself(error: Exception) -> bool:
    """Return True if a transfer that broke off with this error may be resumed at once."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    if refusal_code(error):
        return refusal_code(error) in _BUSY
    # Not a ConnectionError: botocore has retried by itself where it could not connect at all.
    return isinstance(error, HTTPClientError | IncompleteReadError)


@contextmanager
def explaining(target: Target) -> Iterator[None]:
    """Turn botocore's errors in the block into typed ones with a remedy.

    Raises:
        StorageError: If the store refuses, or there are no credentials.
        StoreUnreachableError: If it does not answer.
    """
    try:
        yield
    except Exception as error:
        if not is_botocore_error(error):
            raise
        raise typed_error(error, target) from error


def is_botocore_error(error: BaseException) -> bool:
    """Return True if botocore raised the error, also through a library on top of it, such as s3fs."""
    return type(error).__module__.partition(".")[0] in ("boto3", "botocore")


def typed_error(error: BaseException, target: Target) -> StorageError:
    """Translate an error of botocore into one of csflow's.

    Args:
        error: One for which :func:`is_botocore_error` holds.
        target: What the call was about.

    Returns:
        A :class:`StoreUnreachableError` if the same call may succeed later, else a :class:`StorageError`.
    """
    return _refused(error, target) if refusal_code(error) else _not_done(error, target)


def _refused(error: BaseException, target: Target) -> StorageError:
    code, address, bucket = refusal_code(error), target.address, target.bucket
    if code == "NoSuchBucket":
        return StorageError(f"{address} has no bucket {bucket}. Create it, or correct {target.named_by}.")
    if code in _UNKNOWN_KEY:
        return StorageError(f"{address} does not accept these credentials ({code}). Correct {CREDENTIALS}.")
    if code in _EXPIRED:
        return StorageError(f"The credentials for {address} have expired ({code}). Get new ones: AWS_SESSION_TOKEN.")
    if code in _DENIED:
        return StorageError(
            f"{address} denies access to {target.uri} ({code}). Check {CREDENTIALS}; they need {target.rights} there. "
            f"Otherwise ask the owner of {bucket}."
        )
    if code == "RequestTimeTooSkewed":
        return StorageError(f"{address} says that this machine's clock is wrong. Set it: {error}")
    if code in _REGION:
        return StorageError(f"{bucket} is in another region ({code}). Correct AWS_DEFAULT_REGION: {error}")
    if code in _MISSING:
        return StorageError(
            f"{target.uri} does not exist at {address} ({code}). Upload it, or correct {target.named_by}."
        )
    if code in _BUSY:
        return StoreUnreachableError(f"{address} cannot answer now ({code}), after several attempts. Try again later.")
    return StorageError(f"{address} refuses {target.uri}: {error}")


def _not_done(error: BaseException, target: Target) -> StorageError:
    from botocore.exceptions import (
        ConnectionError,
        HTTPClientError,
        IncompleteReadError,
        NoCredentialsError,
        PartialCredentialsError,
        SSLError,
    )

    address, uri = target.address, target.uri
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StorageError(f"There are no complete credentials for {uri} at {address} ({error}). Set {CREDENTIALS}.")
    if isinstance(error, SSLError):
        return StorageError(f"The certificate of {address} is not trusted: {error}. Set AWS_CA_BUNDLE.")
    if isinstance(error, HTTPClientError | ConnectionError | IncompleteReadError):
        return StoreUnreachableError(
            f"{address} does not answer, or broke off, after several attempts at {uri}: {error}. "
            f"Check {_NETWORK}, then run the same again: what was transferred completely is not transferred twice."
        )
    return StorageError(f"{uri} cannot be reached at {address}: {error}. Check {_NETWORK}, and {CREDENTIALS}.")
