"""Write one MLflow run for each pipeline run: the first step opens it and every step logs to it.

Every run of a line has the same parameter names (:func:`csflow.adapters.mlflow.runs.flat_params`) and metric names, so
that the MLflow page and ``csflow compare`` can show runs side by side. The experiment is named after the line.

:mod:`csflow.adapters.mlflow.page` lists the metrics and says how MLflow's page shows them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.adapters.mlflow import page
from csflow.adapters.mlflow.connection import client_of, is_server, typed_errors
from csflow.adapters.mlflow.curves import Curves, Point
from csflow.adapters.mlflow.database import initialise, require_database
from csflow.adapters.mlflow.runs import Run
from csflow.adapters.mlflow.versions import LONGEST_TAG
from csflow.errors import NotRegisteredError, RegistryError
from csflow.system.processes import peak_memory
from csflow.system.retry import database_is_locked, retried
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from csflow.flow.training import EpochResult

_PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class Tracker:
    """The runs of a workspace's MLflow.

    Attributes:
        workspace: Names the MLflow database or server.
    """

    workspace: Workspace

    def initialise(self) -> None:
        """Create or migrate the local database; do nothing if there is a tracking server.

        Raises:
            CsflowError: If the database cannot be created.
        """
        initialise(self.workspace)

    @typed_errors
    def start_run(
        self,
        line: str,
        *,
        params: Mapping[str, str],
        tags: Mapping[str, object],
        name: str | None = None,
        parent: str | None = None,
    ) -> str:
        """Open the MLflow run of one pipeline run, in state ``RUNNING``.

        Args:
            line: Name of the experiment: the line's name, or :func:`ablations_of` it.
            params: Parameters; every run of a line has the same names, see
                :func:`csflow.adapters.mlflow.runs.flat_params`.
            tags: Tags, for instance the digests of the data; those that are ``None`` are left out.
            name: Name of the run on MLflow's page; line and time by default.
            parent: Id of the run that contains it.

        Returns:
            The id of the run, to which every later step logs.
        """
        initialise(self.workspace)
        run = client_of(self.workspace).create_run(
            self._experiment_id(line),
            run_name=name or f"{datetime.now(UTC):%m-%d %H:%M:%S} {line}",  # differs even if the page cuts it
            tags={
                **page.run_labels(_command(line)), **_tag_texts(tags), **({_PARENT: parent} if parent else {})
            },
        )  # fmt: skip
        self._log(run.info.run_id, params=params)
        self._offer_comparison(str(run.info.experiment_id))
        return str(run.info.run_id)

    @contextmanager
    def step(self, run_id: str, name: str) -> Iterator[None]:
        """Run the block as a pipeline step: log its duration and peak memory, and mark the run if it fails.

        An error sets the tags ``error`` and ``failed_step`` and the status ``FAILED`` (``KILLED`` for an
        interrupt) and is raised again. A retry of the step removes these marks.
        """
        self._reopen(run_id)
        start = time.perf_counter()
        try:
            yield
        except BaseException as error:
            # The step's own error matters more than one of the tracker.
            with suppress(Exception):
                status = "FAILED" if isinstance(error, Exception) else "KILLED"
                self.fail(run_id, step=name, message=str(error) or type(error).__name__, status=status)
            raise
        used = {f"seconds_{name}": time.perf_counter() - start, f"peak_memory_mb_{name}": peak_memory() / 1e6}
        self.log_metrics(run_id, used)

    @typed_errors
    def fail(self, run_id: str, *, step: str, message: str, status: str = "FAILED") -> None:
        """Mark the run as failed in ``step`` because of ``message``."""
        self.set_tags(run_id, {"failed_step": step, "error": message})
        client_of(self.workspace).set_terminated(run_id, status)

    @typed_errors
    @retried(database_is_locked)
    def finish(self, run_id: str, outcome: str) -> None:
        """Close the run as ``FINISHED`` with an outcome, for instance ``promoted`` or ``unchanged``."""
        self.set_tags(run_id, {"outcome": outcome})
        client_of(self.workspace).set_terminated(run_id, "FINISHED")

    def log_metrics(self, run_id: str, metrics: Mapping[str, float | None]) -> None:
        """Log final figures; those that are ``None`` are left out."""
        points = [Point.now(name, value) for name, value in metrics.items() if value is not None]
        self._log(run_id, points=points)

    def set_tags(self, run_id: str, tags: Mapping[str, object]) -> None:
        """Set tags of the run; those that are ``None`` are left out, and values that are too long are cut."""
        self._log(run_id, tags=_tag_texts(tags))

    @contextmanager
    def epoch_log(self, run_id: str, *, every: float = 2.0) -> Iterator[Callable[[EpochResult], None]]:
        """Yield an ``on_epoch`` for :func:`csflow.flow.training.fit_flow` that draws the run's curves.

        Epochs are written together every ``every`` seconds and when the block ends, even by an error, so that the
        tracker does not slow down short epochs.
        """
        curves = Curves(lambda points: self._log(run_id, points=points), every)
        try:
            yield curves.add
        finally:
            curves.flush()

    @typed_errors
    def log_artifact(self, run_id: str, path: Path, *, folder: str | None = None) -> None:
        """Attach a file, or a directory under its own name, to the run, in the artifact folder ``folder``."""
        client_of(self.workspace).log_artifact(run_id, str(path), folder)

    @typed_errors
    def log_json(self, run_id: str, values: Mapping[str, object], name: str) -> None:
        """Attach JSON values to the run as the file ``name``."""
        client_of(self.workspace).log_dict(run_id, dict(values), name)

    @typed_errors
    @retried(database_is_locked)
    def describe_line(self, line: str, description: str) -> None:
        """Set the description of a line's experiment, in Markdown."""
        page.describe_experiment(client_of(self.workspace), self._experiment_id(line), {page.NOTE: description})

    @typed_errors
    def fetch_artifact(self, run_id: str, path: str, target: Path) -> Path:
        """Copy one of the run's artifacts into the folder ``target``.

        Raises:
            RegistryError: If the run has no such artifact, or it cannot be read.
        """
        require_database(self.workspace)
        client_of(self.workspace)
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        uri = self.workspace.tracking_uri
        try:
            return Path(download_artifacts(run_id=run_id, artifact_path=path, dst_path=str(target), tracking_uri=uri))
        except (MlflowException, OSError) as error:
            raise RegistryError(f"Artifact {path} of run {run_id} cannot be read from {uri}: {error}.") from error

    @typed_errors
    @retried(database_is_locked)
    def log_dataset(self, run_id: str, *, name: str, digest: str, manifest: Path, source: str) -> None:
        """Record which data the run used, and attach the manifest under ``data/``.

        Args:
            run_id: The run.
            name: Name of the line.
            digest: Digest of the data; MLflow keeps its first 36 characters.
            manifest: The manifest as CSV.
            source: Origin of the images.
        """
        import pandas as pd

        client = client_of(self.workspace)
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.pandas_dataset import from_pandas
        from mlflow.entities import Dataset, DatasetInput, InputTag

        frame = pd.read_csv(manifest, keep_default_na=False, dtype=str)
        # MLflow has no source type for DVC: another type produces schema and profile, and is then replaced by ours.
        described = from_pandas(frame, source=CodeDatasetSource({}), name=name, digest=digest[:36]).to_dict()
        dataset = Dataset(**described | {"source_type": "dvc", "source": json.dumps({"uri": source})})
        client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        self.log_artifact(run_id, manifest, folder="data")

    @typed_errors
    def read_run(self, run_id: str) -> Run:
        """Read a run.

        Raises:
            RegistryError: If the tracker does not know the run.
        """
        require_database(self.workspace)
        client = client_of(self.workspace)
        from mlflow.exceptions import MlflowException

        try:
            return Run.of(client.get_run(run_id))
        except MlflowException as error:
            if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                raise
            raise RegistryError(
                f"MLflow at {self.workspace.tracking_uri} has no run {run_id!r}: {error.message}"
            ) from error

    @typed_errors
    def list_runs(self, line: str, *, limit: int) -> list[Run]:
        """List the last runs of a line, newest first.

        Raises:
            NotRegisteredError: If the line never ran here.
        """
        require_database(self.workspace)
        client = client_of(self.workspace)
        experiment = client.get_experiment_by_name(line)
        if experiment is None:
            raise NotRegisteredError(self._never_ran(line))
        found = client.search_runs(
            [experiment.experiment_id], max_results=limit, order_by=["attributes.start_time DESC"]
        )
        return [Run.of(run) for run in found]

    @typed_errors
    def nested_runs(self, parent: str) -> list[Run]:
        """List the runs nested in a run, oldest first."""
        require_database(self.workspace)
        client = client_of(self.workspace)
        experiment = client.get_run(parent).info.experiment_id
        chosen = f"tags.`{_PARENT}` = '{parent}'"
        return [Run.of(run) for run in client.search_runs([experiment], chosen, order_by=["attributes.start_time ASC"])]

    @typed_errors
    @retried(database_is_locked)
    def _log(
        self,
        run_id: str,
        *,
        points: Sequence[Point] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Log everything in one request, which takes a few milliseconds on SQLite."""
        client = client_of(self.workspace)
        from mlflow.entities import Metric, Param, RunTag

        client.log_batch(
            run_id,
            metrics=[Metric(*point) for point in points],
            params=[Param(name, value) for name, value in (params or {}).items()],
            tags=[RunTag(name, value) for name, value in (tags or {}).items()],
        )

    @typed_errors
    @retried(database_is_locked)
    def _reopen(self, run_id: str) -> None:
        client = client_of(self.workspace)
        run = client.get_run(run_id)
        if run.info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
            for tag in {"failed_step", "error"} & run.data.tags.keys():
                client.delete_tag(run_id, tag)

    def _offer_comparison(self, experiment: str) -> None:
        """Store the columns by which the page compares the last runs; a page that cannot be arranged hinders no run."""
        with suppress(Exception):
            client = client_of(self.workspace)
            last = client.search_runs([experiment], max_results=20, order_by=["attributes.start_time DESC"])
            page.store_view(client, experiment, [run.data.params for run in last])

    def _experiment_id(self, line: str) -> str:
        client = client_of(self.workspace)
        from mlflow.exceptions import MlflowException

        if (experiment := client.get_experiment_by_name(line)) is None:
            location = None if is_server(self.workspace) else (self.workspace.root / "mlartifacts" / line).as_uri()
            try:
                made = client.create_experiment(line, artifact_location=location)
                if not is_server(self.workspace):
                    page.hide_default_experiment(client)
                return made
            except MlflowException:
                # Another process may have created it first; if not, the server refuses.
                if (experiment := client.get_experiment_by_name(line)) is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def _never_ran(self, line: str) -> str:
        return (
            f"Line {line!r} never ran: MLflow at {self.workspace.tracking_uri} has no experiment of that name. "
            f"Run its pipeline first: csflow run {line}"
        )


def _command(experiment: str) -> str:
    """Return the command that makes runs of an experiment."""
    line, _, ablations = experiment.partition(".")
    return f"csflow ablate {line}" if ablations else f"csflow run {line}"


def _tag_texts(tags: Mapping[str, object]) -> dict[str, str]:
    return page.stored_tags({name: _text(value)[:LONGEST_TAG] for name, value in tags.items() if value is not None})


def _text(value: object) -> str:
    return "none" if value is None else str(value)
