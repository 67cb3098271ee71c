"""Requests to a Kubeflow Pipelines server: which fail for good, which are tried again, and what the errors say.

Whatever fails in a way that passes (no connection, 429, 5xx) is tried again with growing pauses. What creates
something looks first whether an earlier attempt, whose answer was lost, created it already.
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
    """The server refused, or what it said makes no sense."""


class NoServerError(ServerError):
    """No server is named, or none answers."""


class _UnansweredError(NoServerError):
    """Nobody knows whether something was created."""


class DeniedError(ServerError):
    """The server wants another sign-in."""


class MissingError(ServerError):
    """The server knows no such thing (any more)."""


class ConflictError(ServerError):
    """Something of that name is there already."""


class Api:
    """The services of ``kfp_server_api``, each by its name, such as ``Run`` or ``RecurringRun``.

    Attributes:
        url: Where the server is.
    """

    def __init__(self, url: str, *, token_file: Path | None = None, pause: float = 0.5) -> None:
        """Use the server at ``url``; nothing is asked yet.

        Args:
            url: For instance ``http://127.0.0.1:8888``.
            token_file: File with a bearer token.
            pause: Seconds before the second attempt of a request; doubled before each further one.
        """
        import kfp_server_api

        configuration = kfp_server_api.Configuration(host=url.rstrip("/"))
        configuration.ssl_ca_cert = os.environ.get("SSL_CERT_FILE")
        configuration.retries = False  # ours have pauses
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
        """Everything that a list has, page by page, fetched as it is needed."""
        asked = {name: value for name, value in rest.items() if value is not None}
        token: str | None = ""
        while token is not None:
            page = self.ask(service, call, *args, page_size=page_size, page_token=token, **asked)
            yield from getattr(page, field) or []
            token = page.next_page_token or None

    def ask(self, service: str, call: str, *args: Any, **rest: Any) -> Any:
        """A request that may be repeated."""
        return retried(_passes, pause=self._pause)(self.call)(service, call, *args, **rest)

    def made(self, known: Callable[[], Made | None], make: Callable[[], Made]) -> Made:
        """What is known, else what is made; what an attempt made whose answer was lost is known to the next one."""

        def attempt() -> Made:
            found = known()
            if found is not None:
                return found
            try:
                return make()
            except ConflictError:
                found = known()  # somebody else was faster
                if found is None:
                    raise
                return found
            except NoServerError as error:
                raise _UnansweredError(str(error)) from error

        return retried(lambda error: isinstance(error, _UnansweredError), pause=self._pause)(attempt)()

    def call(self, service: str, call: str, *args: Any, **rest: Any) -> Any:
        """One request, which is not repeated.

        Args:
            service: Its name.
            call: Name of the client's method.
            args: Of the method.
            rest: Of the method, by name.

        Raises:
            ServerError: If it fails.
        """
        with self._translated():
            answer = getattr(self._services[service], f"{call}_with_http_info")(
                *args, _request_timeout=_TIMEOUT, **rest
            )
            value, _, headers = answer
            # The client makes an object of Nones from whatever is no JSON, and then a sign-in looks like an empty list.
            if "json" not in headers.get("content-type", ""):
                raise ValueError(f"content of type {headers.get('content-type')}")
            return value

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Let errors of the client come out as ours, with what to do."""
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
