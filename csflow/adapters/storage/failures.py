"""What an object store's refusals mean, and what to do about them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from csflow.errors import StorageError, StoreUnreachableError

_CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_ADDRESS = "AWS_ENDPOINT_URL and the network"

_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden", "UnauthorizedAccess"}
_UNKNOWN_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity", "AuthFailure", "401", "Unauthorized"}
_EXPIRED = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestExpired"}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_BUSY = {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "500", "502", "503", "504"}
_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "301", "IllegalLocationConstraintException"}


def code_of(error: Exception) -> str:
    """The store's own word for a refusal, for instance ``NoSuchKey``; empty for other errors."""
    answer = getattr(error, "response", None) or {}
    return str(answer.get("Error", {}).get("Code", ""))


def is_missing(error: Exception) -> bool:
    """Whether an object is not there; in an answer without a body a missing bucket looks the same."""
    return code_of(error) in _MISSING


def passes_by_itself(error: Exception) -> bool:
    """Whether a transfer that broke off with this error may be taken up again at once."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    if code_of(error):
        return code_of(error) in _BUSY
    # Not a ConnectionError: botocore has tried again by itself where it could not connect at all.
    return isinstance(error, HTTPClientError | IncompleteReadError)


@contextmanager
def explaining(place: str, address: str) -> Iterator[None]:
    """Turn botocore's errors into typed ones with a remedy.

    Args:
        place: ``s3://BUCKET/KEY`` that was meant.
        address: Where the store was looked for.

    Raises:
        StorageError: If the store refuses, or there are no credentials.
        StoreUnreachableError: If it does not answer.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise _refused(error, place, address) from error
    except BotoCoreError as error:
        raise _not_done(error, place, address) from error


def _refused(error: Exception, place: str, address: str) -> StorageError:
    code, bucket = code_of(error), "/".join(place.split("/")[:3])
    if code == "NoSuchBucket":
        return StorageError(f"{address} has no bucket {bucket}. Create it, or correct CSFLOW_STORE.")
    if code in _UNKNOWN_KEY:
        return StorageError(f"{address} does not accept these credentials ({code}). Correct {_CREDENTIALS}.")
    if code in _EXPIRED:
        return StorageError(f"The credentials for {address} have expired ({code}). Get new ones: AWS_SESSION_TOKEN.")
    if code in _DENIED:
        return StorageError(
            f"{address} denies access to {place} ({code}). These credentials need s3:GetObject, s3:PutObject and "
            f"s3:ListBucket there (csflow prune also s3:DeleteObject); ask the owner of {bucket}."
        )
    if code == "RequestTimeTooSkewed":
        return StorageError(f"{address} says that this machine's clock is wrong. Set it: {error}")
    if code in _REGION:
        return StorageError(f"{bucket} lies in another region ({code}). Correct AWS_DEFAULT_REGION: {error}")
    if code in _MISSING:
        return StorageError(f"{place} does not exist at {address}. Upload it again, or correct CSFLOW_STORE.")
    if code in _BUSY:
        return StoreUnreachableError(f"{address} cannot answer now ({code}), after several attempts. Try again later.")
    return StorageError(f"{address} refuses {place}: {error}")


def _not_done(error: Exception, place: str, address: str) -> StorageError:
    from botocore.exceptions import (
        ConnectionError,
        HTTPClientError,
        IncompleteReadError,
        NoCredentialsError,
        PartialCredentialsError,
        SSLError,
    )

    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StorageError(f"There are no credentials for {address} ({error}). Set {_CREDENTIALS}.")
    if isinstance(error, SSLError):
        return StorageError(f"The certificate of {address} is not trusted: {error}. Set AWS_CA_BUNDLE.")
    if isinstance(error, HTTPClientError | ConnectionError | IncompleteReadError):
        return StoreUnreachableError(
            f"{address} does not answer, or broke off, after several attempts at {place}: {error}. "
            f"Check {_ADDRESS}, then run the same again: what was transferred whole is not transferred twice."
        )
    return StorageError(f"{place} cannot be reached at {address}: {error}. Check {_ADDRESS}, and {_CREDENTIALS}.")
