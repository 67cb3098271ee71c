"""A Kubeflow Pipelines server, through the v2beta1 API that ``kfp_server_api`` speaks.

``CSFLOW_KFP_URL`` names it. Where it asks for a token, that is read from the file that kfp's own variable
``KF_PIPELINES_SA_TOKEN_PATH`` names, afresh for every request. A server of several users keeps everything in the
namespace ``CSFLOW_NAMESPACE``.

Whatever fails in a way that passes (no connection, 429, 5xx) is tried again with growing pauses. What creates
something looks first whether an earlier attempt, whose answer was lost, created it already.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from csflow.errors import CsflowError, UsageError
from csflow.retry import retried
from pipelines.package import Package
from pipelines.schedules import Found, Wanted

if TYPE_CHECKING:
    import kfp_server_api  # type: ignore[import-untyped]

URL, TOKEN_FILE, NAMESPACE = "CSFLOW_KFP_URL", "KF_PIPELINES_SA_TOKEN_PATH", "CSFLOW_NAMESPACE"
EXPERIMENT_PREFIX = "csflow-"
FINISHED = frozenset({"SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"})
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_PAGE = 100
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


@dataclass(frozen=True)
class ServerRun:
    """A run on the server.

    Attributes:
        id: Of the run.
        name: Shown to people.
        state: ``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED``, …
        created: When it was asked for.
        error: What the server says of a run that failed.
    """

    id: str
    name: str
    state: str
    created: datetime | None
    error: str = ""


@dataclass(frozen=True)
class PipelineVersion:
    """A pipeline's version on the server, by its ids."""

    pipeline: str
    version: str


class Server:
    """A Kubeflow Pipelines server.

    Attributes:
        url: Where it is.
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
        self._api: dict[str, Any] = {
            name: getattr(kfp_server_api, f"{name}ServiceApi")(self._client)
            for name in ("Healthz", "Pipeline", "PipelineUpload", "Experiment", "Run", "RecurringRun")
        }

    @classmethod
    def from_environment(cls) -> Server:
        """The server that ``CSFLOW_KFP_URL`` names.

        Raises:
            NoServerError: If it names none.
        """
        url = os.environ.get(URL, "")
        if not url:
            raise NoServerError(
                f"{URL} is not set, so there is no Kubeflow Pipelines server to ask. Set it, for instance to "
                "http://127.0.0.1:8888 after: kubectl -n kubeflow port-forward svc/ml-pipeline 8888"
            )
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{URL} is {url!r}, expected an address that starts with http:// or https://.")
        token = os.environ.get(TOKEN_FILE)
        return cls(url, token_file=Path(token) if token else None)

    @cached_property
    def namespace(self) -> str | None:
        """Where a server of several users keeps what is ours; ``None`` for a server of one."""
        health = self._ask("Healthz", "healthz_service_get_healthz")
        return os.environ.get(NAMESPACE, "csflow") if health.multi_user else None

    def version_of(self, package: Package) -> PipelineVersion:
        """The version with the content of a package, uploaded unless it is there."""
        pipeline = self._made(lambda: self._pipeline(package.name), lambda: self._create_pipeline(package.name))
        version = self._made(lambda: self._version(pipeline, package.version), lambda: self._upload(pipeline, package))
        return PipelineVersion(pipeline, version)

    def start(
        self, line: str, name: str, version: PipelineVersion, parameters: dict[str, Any], *, account: str | None = None
    ) -> ServerRun:
        """Start a run of a line, once, whatever happens on the way.

        Args:
            line: Its runs are kept together.
            name: Unique among them: by it a run is found whose creation was not answered.
            version: Of the pipeline.
            parameters: Of the pipeline.
            account: Service account of its pods; the server's default if ``None``.
        """
        import kfp_server_api

        experiment = self._experiment(line)
        run = kfp_server_api.V2beta1Run(
            display_name=name,
            experiment_id=experiment,
            pipeline_version_reference=_reference(version),
            runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=parameters),
            service_account=account,
        )

        def known() -> ServerRun | None:
            return next((each for each in self._runs(experiment, _named(name))), None)

        return self._made(known, lambda: _run(self._call("Run", "run_service_create_run", run=run)))

    def read_run(self, run_id: str) -> ServerRun:
        """A run as it is now.

        Raises:
            MissingError: If it was deleted.
        """
        return _run(self._ask("Run", "run_service_get_run", run_id))

    def last_run(self, line: str) -> ServerRun | None:
        """The newest run of a line; ``None`` if it never ran."""
        experiment = self._known_experiment(line)
        return None if experiment is None else next(self._runs(experiment, page_size=1), None)

    def recurring_runs(self) -> list[Found]:
        """All recurring runs that csflow made."""
        pages = self._pages(
            "RecurringRun", "recurring_run_service_list_recurring_runs", "recurring_runs", namespace=self.namespace
        )
        found = (_found(each) for each in pages)
        return [each for each in found if each is not None]

    def create_recurring(self, wanted: Wanted, version: PipelineVersion, *, enabled: bool) -> str:
        """Create a recurring run, unless one of its name is there; its id."""
        import kfp_server_api

        body = kfp_server_api.V2beta1RecurringRun(
            display_name=wanted.name,
            description=wanted.note,
            experiment_id=self._experiment(wanted.line),
            pipeline_version_reference=_reference(version),
            runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=dict(wanted.parameters)),
            service_account=wanted.account,
            trigger=kfp_server_api.V2beta1Trigger(
                cron_schedule=kfp_server_api.V2beta1CronSchedule(cron=wanted.clock.cron)
            ),
            max_concurrency="1",
            no_catchup=True,
            mode="ENABLE" if enabled else "DISABLE",
        )

        def known() -> str | None:
            return next((each.id for each in self.recurring_runs() if each.name == wanted.name), None)

        def make() -> str:
            made = self._call("RecurringRun", "recurring_run_service_create_recurring_run", recurring_run=body)
            return str(made.recurring_run_id)

        return self._made(known, make)

    def enable(self, recurring_run: str) -> None:
        """Let a recurring run start runs."""
        self._ask("RecurringRun", "recurring_run_service_enable_recurring_run", recurring_run)

    def disable(self, recurring_run: str) -> None:
        """Let a recurring run start no more runs; those that run go on."""
        self._ask("RecurringRun", "recurring_run_service_disable_recurring_run", recurring_run)

    def delete(self, recurring_run: str) -> None:
        """Delete a recurring run, if it is still there; its runs stay."""
        try:
            self._ask("RecurringRun", "recurring_run_service_delete_recurring_run", recurring_run)
        except MissingError:
            return

    def _pipeline(self, name: str) -> str | None:
        # Optional parameters that are None would be sent as such.
        where = {"namespace": self.namespace} if self.namespace else {}
        try:
            found = self._ask("Pipeline", "pipeline_service_get_pipeline_by_name", name, **where)
        except MissingError:
            return None
        return str(found.pipeline_id)

    def _create_pipeline(self, name: str) -> str:
        import kfp_server_api

        body = kfp_server_api.V2beta1Pipeline(name=name, display_name=name, namespace=self.namespace)
        return str(self._call("Pipeline", "pipeline_service_create_pipeline", pipeline=body).pipeline_id)

    def _version(self, pipeline: str, name: str) -> str | None:
        pages = self._pages("Pipeline", "pipeline_service_list_pipeline_versions", "pipeline_versions", pipeline)
        return next((str(each.pipeline_version_id) for each in pages if name in (each.name, each.display_name)), None)

    def _upload(self, pipeline: str, package: Package) -> str:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{package.name}.yaml"
            file.write_text(package.text)
            call = "upload_pipeline_version"
            made = self._call("PipelineUpload", call, str(file), name=package.version, pipelineid=pipeline)
        return str(made.pipeline_version_id)

    def _experiment(self, line: str) -> str:
        import kfp_server_api

        name = EXPERIMENT_PREFIX + line
        body = kfp_server_api.V2beta1Experiment(display_name=name, namespace=self.namespace)

        def make() -> str:
            return str(self._call("Experiment", "experiment_service_create_experiment", experiment=body).experiment_id)

        return self._made(lambda: self._known_experiment(line), make)

    def _known_experiment(self, line: str) -> str | None:
        pages = self._pages(
            "Experiment",
            "experiment_service_list_experiments",
            "experiments",
            namespace=self.namespace,
            filter=_named(EXPERIMENT_PREFIX + line),
        )
        return next((str(each.experiment_id) for each in pages), None)

    def _runs(self, experiment: str, filter_: str | None = None, page_size: int = _PAGE) -> Iterator[ServerRun]:
        """Newest first."""
        pages = self._pages(
            "Run",
            "run_service_list_runs",
            "runs",
            experiment_id=experiment,
            sort_by="created_at desc",
            filter=filter_,
            page_size=page_size,
        )
        return (_run(each) for each in pages)

    def _pages(
        self, service: str, call: str, field: str, *args: Any, page_size: int = _PAGE, **rest: Any
    ) -> Iterator[Any]:
        """Everything that a list has, page by page, fetched as it is needed."""
        asked = {name: value for name, value in rest.items() if value is not None}
        token: str | None = ""
        while token is not None:
            page = self._ask(service, call, *args, page_size=page_size, page_token=token, **asked)
            yield from getattr(page, field) or []
            token = page.next_page_token or None

    def _ask(self, service: str, call: str, *args: Any, **rest: Any) -> Any:
        """A request that may be repeated."""
        return retried(_passes, pause=self._pause)(self._call)(service, call, *args, **rest)

    def _made(self, known: Callable[[], Made | None], make: Callable[[], Made]) -> Made:
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

    def _call(self, service: str, call: str, *args: Any, **rest: Any) -> Any:
        with self._translated():
            answer = getattr(self._api[service], f"{call}_with_http_info")(*args, _request_timeout=_TIMEOUT, **rest)
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


def _named(name: str) -> str:
    """Filter of lists by the name that people see; the numbers are those of the API's enumeration."""
    return json.dumps({"predicates": [{"operation": 1, "key": "display_name", "stringValue": name}]})


def _reference(version: PipelineVersion) -> kfp_server_api.V2beta1PipelineVersionReference:
    import kfp_server_api

    return kfp_server_api.V2beta1PipelineVersionReference(
        pipeline_id=version.pipeline, pipeline_version_id=version.version
    )


def _run(run: kfp_server_api.V2beta1Run) -> ServerRun:
    error = run.error.message if run.error and run.error.message else ""
    return ServerRun(str(run.run_id), str(run.display_name), str(run.state or "PENDING"), run.created_at, error)


def _found(run: kfp_server_api.V2beta1RecurringRun) -> Found | None:
    cron = run.trigger.cron_schedule.cron if run.trigger and run.trigger.cron_schedule else ""
    enabled = run.status == "ENABLED"
    return Found.parse(str(run.recurring_run_id), run.display_name or "", run.description or "", enabled, cron or "")


def _token(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError as error:
        raise DeniedError(f"The token file {file} of {TOKEN_FILE} cannot be read: {error.strerror}.") from error
