"""Arrange runs, experiments and versions so that MLflow's own page is a good place to compare them.

* The page groups charts by the part of a metric's name before ``/`` and sorts the groups by name, so ``image_auroc`` is
  stored as ``accuracy/image_auroc``, ``train_nll`` as ``curves/nll`` and ``seconds_train`` as ``seconds/train``.
* It shows every tag of a run but those whose name begins with ``mlflow.``: digests and keys, which csflow reads and
  people do not, are stored as ``mlflow.csflow.NAME``. Of a version it shows all tags in one of its tables, so they are
  one tag in JSON, ``mlflow.csflow``. People find them in the run's artifact ``digests.json``.
* It opens in the view for generative models unless the address says otherwise (:func:`runs_address`).
* A stored view of an experiment chooses the columns of its table (:func:`comparison_view`).

============================= =====================================================================
metric                        meaning
============================= =====================================================================
``train_nll``                 mean negative log-likelihood per dimension in nats, one value per epoch
``train_held_out_nll``        the same of at most 32 calibration images, which are not trained on, after
                              about 20 epochs
``train_grad_norm``           gradient norm before clipping, one value per epoch
``train_epoch_seconds``       duration of the epoch
``train_learning_rate``       of the epoch
``seconds_STEP``              duration of a pipeline step
``image_auroc``,              of the test images; the ends of their 95 % intervals are in the run's
``average_precision``,        ``report.json``
``f1_max``, ``fpr_at_95_tpr``
``pixel_auroc``,              of the test images' anomaly maps, likewise; absent without masks
``pixel_ap``, ``aupro``
``defects_found``             share of the defective test images found at the threshold
``false_alarm_rate``          share of the good test images called defective
``threshold``                 score above which a part is defective; absent without calibration
``images_ROLE``               number of images, for instance ``images_fit``
============================= =====================================================================


Names of metrics and tags are turned back when they are read, and those of csflow 0.5 and older are read as they are.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

NOTE = "mlflow.note.content"
"""Tag of a run or experiment: its description, in Markdown."""

_ACCURACY = frozenset(
    {
        "image_auroc", "average_precision", "f1_max", "fpr_at_95_tpr", "pixel_auroc", "pixel_ap", "aupro",
        "defects_found", "false_alarm_rate",
    }
)  # fmt: skip
"""Metrics that the page shows first, in the group ``accuracy``."""

_GROUPS = {"train_": "curves/", "seconds_": "seconds/", "peak_memory_mb_": "peak_memory_mb/", "images_": "images/"}
"""Further groups of metrics by the beginning of the name: as csflow knows it, and as MLflow stores it."""

HIDDEN = frozenset(
    {
        "content_key", "data_md5", "data_digest", "detector_digest", "features_space", "features_digest", "model_key",
        "gate_settings", "decision_evidence", "champion_since", "image_auroc_low", "image_auroc_high", "pixel_auroc",
        "promise", "alpha", "backbone", "seed", "owner",
    }
)  # fmt: skip
"""Tags that csflow reads and that MLflow's page does not show."""

VIEW = "csflow"
"""Name of the stored view of an experiment."""

_PREFIX, _PACKED = "mlflow.csflow.", "mlflow.csflow"
_VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
_FIRST_COLUMNS = ("attributes.`Duration`", "metrics.`accuracy/image_auroc`", "metrics.`accuracy/defects_found`",
                  "metrics.`accuracy/false_alarm_rate`", "tags.`outcome`", "params.`detector`")  # fmt: skip
_MOST_PARAMS = 8
_DEFAULT_EXPERIMENT = "0"


def stored_metric(name: str) -> str:
    """Return the name under which MLflow stores a metric.

    >>> stored_metric("seconds_train"), stored_metric("image_auroc")
    ('seconds/train', 'accuracy/image_auroc')
    """
    if name in _ACCURACY:
        return f"accuracy/{name}"
    known = next((known for known in _GROUPS if name.startswith(known)), None)
    return name if known is None else _GROUPS[known] + name.removeprefix(known)


def read_metrics(stored: Mapping[str, float]) -> dict[str, float]:
    """Return metrics under the names by which csflow knows them."""
    return {_known_metric(name): value for name, value in stored.items()}


def stored_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags under the names under which MLflow stores them."""
    return {f"{_PREFIX}{name}" if name in HIDDEN else name: value for name, value in tags.items()}


def version_tags(tags: Mapping[str, str], before: Mapping[str, str]) -> dict[str, str]:
    """Return tags of a version as MLflow stores them: those for people as they are, the others in one.

    Args:
        tags: The tags to add or change.
        before: The version's tags as MLflow has them now.
    """
    shown = {name: value for name, value in tags.items() if name not in HIDDEN}
    packed = {name: value for name, value in tags.items() if name in HIDDEN}
    if not packed:
        return shown
    # First, since a version counts as decided once it has the tag for people.
    return {_PACKED: json.dumps(json.loads(before.get(_PACKED, "{}")) | packed), **shown}


def read_tags(stored: Mapping[str, str]) -> dict[str, str]:
    """Return csflow's tags under the names by which it knows them, without MLflow's own.

    A tag that an older csflow stored in plain sight counts unless it was stored again since.
    """
    plain = {name: value for name, value in stored.items() if not name.startswith("mlflow.")}
    packed: dict[str, str] = json.loads(stored.get(_PACKED, "{}"))
    hidden = {name.removeprefix(_PREFIX): value for name, value in stored.items() if name.startswith(_PREFIX)}
    return plain | hidden | packed


def run_labels(command: str) -> dict[str, str]:
    """Return the tags that say who made a run and how, in the columns that the page has for it."""
    return {"mlflow.user": user(), "mlflow.source.name": command, "mlflow.source.type": "LOCAL"}


def user() -> str:
    """Return the name of the person or account that runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return "unknown"


def runs_address(server: str, experiment: str) -> str:
    """Return the address of an experiment's table of runs, in the view for trained models.

    Args:
        server: Address of the MLflow server.
        experiment: MLflow's id of the experiment.
    """
    return f"{server.rstrip('/')}/{_fragment(f'experiments/{experiment}/runs')}&viewStateShareKey={VIEW}"


def artifact_link(experiment: str, run_id: str, path: str) -> str:
    """Return a link from one place of MLflow's page to an artifact of a run, whatever the server's address."""
    return _fragment(f"experiments/{experiment}/runs/{run_id}/artifacts/{path}")


def run_link(experiment: str, run_id: str) -> str:
    """Return a link from one place of MLflow's page to a run, whatever the server's address."""
    return _fragment(f"experiments/{experiment}/runs/{run_id}")


def comparison_view(params: Sequence[Mapping[str, str]]) -> str:
    """Return the state of a view that opens on what people compare.

    The columns are duration, accuracy, defects found, false alarms and outcome, then the parameters that differ.

    Args:
        params: Parameters of the runs to compare.
    """
    names = {name for each in params for name in each} - {"detector"}
    differing = [name for name in sorted(names) if len({each.get(name) for each in params}) > 1]
    columns = [*_FIRST_COLUMNS, *(f"params.`{name}`" for name in differing[:_MOST_PARAMS])]
    return json.dumps({"selectedColumns": columns})


def describe_experiment(client: MlflowClient, experiment: str, about: Mapping[str, str]) -> None:
    """Give an experiment its description and its kind, so that the page treats it as one of trained models.

    Args:
        client: MLflow's client.
        experiment: MLflow's id of the experiment.
        about: Further tags, for instance :data:`NOTE`.
    """
    for name, value in {"mlflow.experimentKind": "custom_model_development", **about}.items():
        client.set_experiment_tag(experiment, name, value)


def store_view(client: MlflowClient, experiment: str, params: Iterable[Mapping[str, str]]) -> None:
    """Store the view that :func:`runs_address` opens."""
    client.set_experiment_tag(experiment, _VIEW_TAG, comparison_view(list(params)))


def hide_default_experiment(client: MlflowClient) -> None:
    """Delete the empty experiment that MLflow makes in every new database; one that has runs stays."""
    from mlflow.exceptions import MlflowException

    try:
        default = client.get_experiment(_DEFAULT_EXPERIMENT)
        untouched = default.name == "Default" and default.lifecycle_stage == "active"
        if untouched and not client.search_runs([_DEFAULT_EXPERIMENT], max_results=1):
            client.delete_experiment(_DEFAULT_EXPERIMENT)
    except MlflowException:
        return  # there is none, or another process was faster


def _known_metric(stored: str) -> str:
    for known, group in _GROUPS.items():
        if stored.startswith(group):
            return known + stored.removeprefix(group)
    return stored.removeprefix("accuracy/")


def _fragment(route: str) -> str:
    return f"#/{route}?workflowType=machine_learning"
