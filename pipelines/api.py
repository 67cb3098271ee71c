"""Send requests to a Kubeflow Pipelines server, retry those that fail temporarily, and explain the other failures.

Temporary failures (no connection, 429, 5xx) are retried with growing pauses. A request that creates something first
checks if an earlier attempt, whose response was lost, has created it already.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from csflow.errors import CsflowError
from csflow.system.retry import retried

if TYPE_CHECKING:
    import kfp_server_api  # type: ignore[import-untyped]

URL, TOKEN_FILE = "CSFLOW_KFP_URL", "KF_PIPELINES_SA_TOKEN_PATH"
PAGE = 100
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_TIMEOUT = (10, 60)

Made = TypeVar("Made")


class ServerError(CsflowError):
    """The server refused, or its response makes no sense."""


class NoServerError(ServerError):
    """No server is named, or none answers."""


class _UnansweredError(NoServerError):
    """The response was lost, so the object may have been created or not."""


class DeniedError(ServerError):
    """The server requires a new sign-in."""


class MissingError(ServerError):
    """The server does not have the object, or no longer has it."""


class ConflictError(ServerError):
    """An object with that name exists already."""


class Api:
    """The services of ``kfp_server_api``, each by its name, such as ``Run`` or ``RecurringRun``.

    Attributes:
        url: Address of the server.
    """

    def __init__(self, url: str, *, token_file: Path | None = None, pause: float = 0.5) -> None:
        """Use the server at ``url``, without sending a request yet.

        Args:
            url: Its address, for instance ``http://127.0.0.1:8888``.
            token_file: File with a bearer token.
            pause: Seconds before the second attempt of a request; doubled before each further one.
        """
        import kfp_server_api

        configuration = kfp_server_api.Configuration(host=url.rstrip("/"))
        configuration.ssl_ca_cert = os.environ.get("SSL_CERT_FILE")
        configuration.retries = False  # our own retries have pauses
        if token_file is not None:
            configuration.api_key_prefix["authorization"] = "Bearer"
            configuration.api_key["authorization"] = _token(token_file)
            configuration.refresh_api_key_hook = lambda held: held.api_key.update(authorization=_token(token_file))
        self.url = url
        self._pause = pause
        self._client = kfp_server_api.ApiClient(configuration)
        self._services: dict[str, Any] = {
            name: getattr(kfp_server_api, f"{name}ServiceApi")(self._client)
            for name in ("Healthz", "Pipeline", "PipelineUpload", "Experiment", "Run", "RecurringRun")
        }

    def pages(
        self, service: str, call: str, field: str, *args: Any, page_size: int = PAGE, **rest: Any
    ) -> Iterator[Any]:
        """Yield all items of a list; its pages are fetched as they are needed."""
        asked = {name: value for name, value in rest.items() if value is not None}
        token: str | None = ""
        while token is not None:
            page = self.ask(service, call, *args, page_size=page_size, page_token=token, **asked)
            yield from getattr(page, field) or []
            token = page.next_page_token or None

    def ask(self, service: str, call: str, *args: Any, **rest: Any) -> Any:
        """Send a request that may be retried."""
        return retried(_passes, pause=self._pause)(self.call)(service, call, *args, **rest)

    def made(self, known: Callable[[], Made | None], make: Callable[[], Made]) -> Made:
        """Return an object, created if it does not exist yet.

        A retry first looks for the object, because an attempt whose response was lost may have created it.

        Args:
            known: Finds the object; returns ``None`` if it does not exist.
            make: Creates the object.
        """

        def attempt() -> Made:
            found = known()
            if found is not None:
                return found
            try:
                return make()
            except ConflictError:
                found = known()  # another process was faster
                if found is None:
                    raise
                return found
            except NoServerError as error:
                raise _UnansweredError(str(error)) from error

        return retried(lambda error: isinstance(error, _UnansweredError), pause=self._pause)(attempt)()

    def call(self, service: str, call: str, *args: Any, **rest: Any) -> Any:
        """Send a request without retries.

        Args:
            service: Name of the service.
            call: Name of the client's method.
            args: Positional arguments of the method.
            rest: Keyword arguments of the method.

        Raises:
            ServerError: If it fails.
        """
        with self._translated():
            answer = getattr(self._services[service], f"{call}_with_http_info")(
                *args, _request_timeout=_TIMEOUT, **rest
            )
            value, _, headers = answer
            # The client turns a response that is not JSON into an object of Nones: a sign-in page would look like an
            # empty list.
            if "json" not in headers.get("content-type", ""):
                raise ValueError(f"content of type {headers.get('content-type')}")
            return value

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the client's errors into csflow's, with a remedy."""
        from kfp_server_api.exceptions import ApiException  # type: ignore[import-untyped]
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            raise self._refused(error) from error
        except HTTPError as error:
            raise NoServerError(
                f"No Kubeflow Pipelines server answers at {self.url}: {error}. Start it, or correct {URL}."
            ) from error
        except ValueError as error:
            raise ServerError(
                f"{self.url} answered with something that is not of Kubeflow Pipelines: {error}. If it is the page "
                f"of a sign-in, name a file with a token in {TOKEN_FILE}; else correct {URL}."
            ) from error

    def _refused(self, error: kfp_server_api.exceptions.ApiException) -> ServerError:
        status, said = error.status, _message(error)
        about = f"The Kubeflow Pipelines server at {self.url} answered {status}: {said}"
        if status in (301, 302, 303, 307, 308):
            return DeniedError(
                f"{about}: it sends on to another page, perhaps a sign-in. Name a token in {TOKEN_FILE}."
            )
        if status in (401, 403):
            return DeniedError(f"{about}. Name a file with a token that may do this in {TOKEN_FILE}.")
        if status == 404:
            return MissingError(f"{about}. It was deleted, or {URL} names something else.")
        if status == 409:
            return ConflictError(f"{about}. Remove what has that name, or run this again.")
        if status in _PASSING:
            return NoServerError(f"{about}. See the log of its pod ml-pipeline, and run this again.")
        return ServerError(f"{about}. Expected it to accept what csflow sends: is it of version 2.4 or later?")


def _passes(error: Exception) -> bool:
    return isinstance(error, NoServerError)


def _message(error: kfp_server_api.exceptions.ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.body or error.reason)[:500]


def _token(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError as error:
        raise DeniedError(f"The token file {file} of {TOKEN_FILE} cannot be read: {error.strerror}.") from error
