"""What can go wrong with an S3 store, in words for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from csflow.errors import StorageError, StoreUnreachableError

_DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"}
_STRANGER = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired",
             "RequestTimeTooSkewed", "InvalidSecurity", "401"}  # fmt: skip
_ABSENT = {"NoSuchKey", "404", "NotFound"}
_BUSY = {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "ThrottlingException",
         "500", "502", "503", "504"}  # fmt: skip
_KEYS = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"


@contextmanager
def explained(doing: str, uri: str) -> Iterator[None]:
    """Turn boto3's errors inside the block into a :class:`StorageError` that says what to do.

    Args:
        doing: What the block does: ``upload``, ``download`` …
        uri: What it does it to.

    Raises:
        StoreUnreachableError: If the store does not answer or is overloaded; it may answer later.
        StorageError: If it refuses.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise _refused(doing, uri, error) from error
    except (BotoCoreError, Boto3Error) as error:
        raise _not_reached(doing, uri, error) from error


def is_absent(error: Exception) -> bool:
    """Whether S3 says that there is no such object."""
    return code_of(error) in _ABSENT


def code_of(error: Exception) -> str:
    """S3's name for an error; empty for one that did not come from S3."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _refused(doing: str, uri: str, error: Exception) -> StorageError:
    code, said = code_of(error), str(error)
    bucket = uri.removeprefix("s3://").split("/")[0]
    if code == "NoSuchBucket":
        return StorageError(
            f"Cannot {doing} {uri}: there is no bucket {bucket!r}. Create it, or correct CSFLOW_STORE or "
            "AWS_ENDPOINT_URL."
        )
    if code in _STRANGER:
        return StorageError(f"Cannot {doing} {uri}: the store does not accept the credentials ({code}). Check {_KEYS}.")
    if code in _DENIED:
        return StorageError(
            f"Cannot {doing} {uri}: access denied. The credentials are known but lack a right; csflow needs "
            f"s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on {bucket!r}."
        )
    if code in _ABSENT:
        return StorageError(f"Cannot {doing} {uri}: there is no such object. Publish or upload it first.")
    if code in _BUSY:
        return StoreUnreachableError(
            f"Cannot {doing} {uri}: the store is overloaded or failing ({code}). Try again later."
        )
    return StorageError(f"Cannot {doing} {uri}: {said}")


def _not_reached(doing: str, uri: str, error: Exception) -> StorageError:
    from botocore import exceptions as known

    if isinstance(error, known.NoCredentialsError | known.PartialCredentialsError):
        return StorageError(f"Cannot {doing} {uri}: there are no credentials. Set {_KEYS}.")
    if isinstance(error, known.NoRegionError | known.InvalidRegionError):
        return StorageError(f"Cannot {doing} {uri}: no usable region ({error}). Set AWS_DEFAULT_REGION.")
    if isinstance(error, known.HTTPClientError | known.ConnectionError | known.IncompleteReadError):
        return StoreUnreachableError(
            f"Cannot {doing} {uri}: the store does not answer ({error}). Check the network and AWS_ENDPOINT_URL."
        )
    return StorageError(f"Cannot {doing} {uri}: {error}")
