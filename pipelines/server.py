"""Use a Kubeflow Pipelines server through the v2beta1 API of ``kfp_server_api``.

``CSFLOW_KFP_URL`` names it. If it requires a token, the token is read, anew for every request, from the file that kfp's
own variable ``KF_PIPELINES_SA_TOKEN_PATH`` names. On a multi-user server everything is in the namespace
``CSFLOW_NAMESPACE``.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csflow.errors import UsageError
from pipelines.api import PAGE, TOKEN_FILE, URL, Api, MissingError, NoServerError
from pipelines.package import Package
from pipelines.schedules import Found, Wanted

if TYPE_CHECKING:
    import kfp_server_api  # type: ignore[import-untyped]

NAMESPACE = "CSFLOW_NAMESPACE"
EXPERIMENT_PREFIX = "csflow-"
FINISHED = frozenset({"SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"})


@dataclass(frozen=True)
class ServerRun:
    """A run on the server.

    Attributes:
        id: Id of the run.
        name: Name that people see.
        state: ``PENDING``, ``RUNNING``, ``SUCCEEDED``, ``FAILED``, …
        created: When it was requested.
        error: The server's message about a failed run.
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
        url: Its address.
    """

    def __init__(self, url: str, *, token_file: Path | None = None, pause: float = 0.5) -> None:
        """Use the server at ``url``, without sending a request yet.

        Args:
            url: Its address, for instance ``http://127.0.0.1:8888``.
            token_file: File with a bearer token.
            pause: Seconds before the second attempt of a request; doubled before each further one.
        """
        self.url = url
        self._api = Api(url, token_file=token_file, pause=pause)

    @classmethod
    def from_environment(cls) -> Server:
        """Return the server that ``CSFLOW_KFP_URL`` names.

        Raises:
            NoServerError: If the variable is not set.
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
        """Return the namespace of csflow's objects on a multi-user server; ``None`` on a single-user one."""
        health = self._api.ask("Healthz", "healthz_service_get_healthz")
        return os.environ.get(NAMESPACE, "csflow") if health.multi_user else None

    def version_of(self, package: Package) -> PipelineVersion:
        """Find the pipeline version with the content of a package; upload it if there is none."""
        pipeline = self._api.made(lambda: self._pipeline(package.name), lambda: self._create_pipeline(package.name))
        version = self._api.made(
            lambda: self._version(pipeline, package.version), lambda: self._upload(pipeline, package)
        )
        return PipelineVersion(pipeline, version)

    def start(
        self, line: str, name: str, version: PipelineVersion, parameters: dict[str, Any], *, account: str | None = None
    ) -> ServerRun:
        """Start a run of a line exactly once, even if responses are lost.

        Args:
            line: The line, whose runs form one experiment.
            name: Name that is unique among them, by which a run is found if the response to its creation was lost.
            version: Version of the pipeline.
            parameters: Parameters of the pipeline.
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

        return self._api.made(known, lambda: _run(self._api.call("Run", "run_service_create_run", run=run)))

    def read_run(self, run_id: str) -> ServerRun:
        """Read the present state of a run.

        Raises:
            MissingError: If it was deleted.
        """
        return _run(self._api.ask("Run", "run_service_get_run", run_id))

    def last_run(self, line: str) -> ServerRun | None:
        """Find the newest run of a line; return ``None`` if it never ran."""
        experiment = self._known_experiment(line)
        return None if experiment is None else next(self._runs(experiment, page_size=1), None)

    def recurring_runs(self, name: str | None = None) -> list[Found]:
        """List the recurring runs that csflow made: all of them, or those with a name."""
        pages = self._api.pages(
            "RecurringRun",
            "recurring_run_service_list_recurring_runs",
            "recurring_runs",
            namespace=self.namespace,
            filter=_named(name) if name else None,
        )
        found = (_found(each) for each in pages)
        return [each for each in found if each is not None]

    def create_recurring(self, wanted: Wanted, version: PipelineVersion, *, enabled: bool) -> str:
        """Create a recurring run, unless one with its name exists, and return its id."""
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
            return next((each.id for each in self.recurring_runs(wanted.name)), None)

        def make() -> str:
            made = self._api.call("RecurringRun", "recurring_run_service_create_recurring_run", recurring_run=body)
            return str(made.recurring_run_id)

        return self._api.made(known, make)

    def enable(self, recurring_run: str) -> None:
        """Let a recurring run start runs."""
        self._api.ask("RecurringRun", "recurring_run_service_enable_recurring_run", recurring_run)

    def disable(self, recurring_run: str) -> None:
        """Stop a recurring run, if it still exists, from starting runs; runs in progress go on."""
        with suppress(MissingError):
            self._api.ask("RecurringRun", "recurring_run_service_disable_recurring_run", recurring_run)

    def delete(self, recurring_run: str) -> None:
        """Delete a recurring run, if it still exists; its runs stay."""
        with suppress(MissingError):
            self._api.ask("RecurringRun", "recurring_run_service_delete_recurring_run", recurring_run)

    def _pipeline(self, name: str) -> str | None:
        # Optional parameters that are None would be sent as such.
        where = {"namespace": self.namespace} if self.namespace else {}
        try:
            found = self._api.ask("Pipeline", "pipeline_service_get_pipeline_by_name", name, **where)
        except MissingError:
            return None
        return str(found.pipeline_id)

    def _create_pipeline(self, name: str) -> str:
        import kfp_server_api

        body = kfp_server_api.V2beta1Pipeline(name=name, display_name=name, namespace=self.namespace)
        return str(self._api.call("Pipeline", "pipeline_service_create_pipeline", pipeline=body).pipeline_id)

    def _version(self, pipeline: str, name: str) -> str | None:
        pages = self._api.pages("Pipeline", "pipeline_service_list_pipeline_versions", "pipeline_versions", pipeline)
        return next((str(each.pipeline_version_id) for each in pages if name in (each.name, each.display_name)), None)

    def _upload(self, pipeline: str, package: Package) -> str:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{package.name}.yaml"
            file.write_text(package.text)
            call = "upload_pipeline_version"
            made = self._api.call("PipelineUpload", call, str(file), name=package.version, pipelineid=pipeline)
        return str(made.pipeline_version_id)

    def _experiment(self, line: str) -> str:
        import kfp_server_api

        name = EXPERIMENT_PREFIX + line
        body = kfp_server_api.V2beta1Experiment(display_name=name, namespace=self.namespace)

        def make() -> str:
            return str(
                self._api.call("Experiment", "experiment_service_create_experiment", experiment=body).experiment_id
            )

        return self._api.made(lambda: self._known_experiment(line), make)

    def _known_experiment(self, line: str) -> str | None:
        pages = self._api.pages(
            "Experiment",
            "experiment_service_list_experiments",
            "experiments",
            namespace=self.namespace,
            filter=_named(EXPERIMENT_PREFIX + line),
        )
        return next((str(each.experiment_id) for each in pages), None)

    def _runs(self, experiment: str, filter_: str | None = None, page_size: int = PAGE) -> Iterator[ServerRun]:
        """Yield the runs of an experiment, newest first."""
        pages = self._api.pages(
            "Run",
            "run_service_list_runs",
            "runs",
            experiment_id=experiment,
            sort_by="created_at desc",
            filter=filter_,
            page_size=page_size,
        )
        return (_run(each) for each in pages)


def _named(name: str) -> str:
    """Return the list filter for a display name; its numbers are those of the API's enumeration."""
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
