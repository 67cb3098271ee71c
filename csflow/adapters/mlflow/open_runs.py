"""Find the runs that are in state ``RUNNING``, and close those whose process was killed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from csflow.adapters.mlflow.connection import client_of, typed_errors
from csflow.adapters.mlflow.detector_files import model_id_of
from csflow.adapters.mlflow.runs import Run
from csflow.system.retry import database_is_locked, retried
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun


@dataclass(frozen=True)
class OpenRuns:
    """The runs of a workspace's MLflow that were never closed.

    Attributes:
        workspace: Names the MLflow database or server.
    """

    workspace: Workspace

    @typed_errors
    def of(self, line: str) -> list[Run]:
        """List the open runs of a line, or of its ablations under the name of their experiment."""
        client = client_of(self.workspace)
        if (experiment := client.get_experiment_by_name(line)) is None:
            return []
        return [Run.of(run) for run in client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")]

    @typed_errors
    @retried(database_is_locked)
    def close(self, run_id: str, message: str) -> None:
        """Close a run as ``KILLED`` at the time of its last figure, and remove a model that it only half stored."""
        client = client_of(self.workspace)
        run = client.get_run(run_id)
        heard = [metric.timestamp for metric in run.data._metric_objs]
        _remove_unregistered(client, run, self.workspace.tracking_uri)
        client.set_tag(run_id, "error", message)
        client.set_terminated(run_id, "KILLED", max([run.info.start_time, *heard]))


def _remove_unregistered(client: MlflowClient, run: MlflowRun, uri: str) -> None:
    """Remove the models of a run that are no version: the next run stores its model again."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    run_id = run.info.run_id
    stored = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    registered = {model_id_of(version) for version in client.search_model_versions(f"run_id = '{run_id}'")}
    for model in stored:
        if model.model_id not in registered:
            client.delete_logged_model(model.model_id)
            with suppress(OSError):  # nothing was written yet
                get_artifact_repository(model.artifact_location, tracking_uri=uri).delete_artifacts()  # type: ignore[no-untyped-call]
