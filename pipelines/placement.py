"""Say where on a cluster a pipeline's steps run and what they get; the graphs only define the order.

Every step gets the store volume, the addresses (config map ``csflow``) and the credentials (secrets) as environment.
Steps that compute request the line's CPUs and memory; those that train also request its accelerators, its nodes and a
``/dev/shm`` in memory. Extraction runs in ONNX Runtime on the CPU and needs none of the latter. These are requests and
not limits: a step may use what its node has left.

KFP's own cache is off everywhere: steps find their earlier results by content, and a cached step would log nothing.

A step is retried, with growing pauses, only if a second attempt cannot do harm:

================== ===== ==========================================================================================
step               retry why
================== ===== ==========================================================================================
ingest             no    opens the MLflow run: another attempt would leave the first one's run open for good
validate           yes   only reads, and overwrites its report
plan-shards        yes   is a pure function
extract-shard      yes   the feature store names entries by content; existing entries are not computed again
cache-features     yes   the same
train              yes   resumes from its checkpoint, or finds the finished model under its key
evaluate           yes   computes and writes the same result again
register           yes   an equal content key gives the existing version
promote            no    deploys: a detector that failed its canary or smoke test was rolled back for a reason that
                         a person must see; ``csflow reconcile`` and the next run repair an interrupted promotion
plan-ablation      no    opens the MLflow run of the ablation
ablate-variant     yes   a finished row is found; a row that killed the process is measured last in the next attempt
collect-ablation   yes   overwrites its tables
================== ===== ==========================================================================================

A retry removes the marks of the failure from the MLflow run. Kubeflow Pipelines cannot tell temporary errors from
permanent ones: bad data fails three times, within minutes and at no cost.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Literal

from csflow.config import LineConfig, ResourcesConfig, Section

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

STORE = "/var/lib/csflow"
"""Path at which the store volume is mounted; ``CSFLOW_HOME`` of every step."""

CONFIG_MAP, STORAGE_SECRET, MLFLOW_SECRET = "csflow", "csflow-storage", "csflow-mlflow"
REQUIRED_SETTINGS = ("MLFLOW_TRACKING_URI", "CSFLOW_ENDPOINTS")
"""Keys of the config map without which no step starts, because a run would be logged to a database inside its pod."""

OPTIONAL_SETTINGS = (
    "CSFLOW_STORE", "CSFLOW_NAMESPACE", "CSFLOW_SERVE_IMAGE", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION",
)  # fmt: skip
STORAGE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
MLFLOW_KEYS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")

TRAINS = frozenset({"train", "ablate-variant"})
COMPUTES = TRAINS | {"extract-shard", "cache-features", "evaluate", "promote"}
REPEATABLE = frozenset({"validate", "plan-shards", "extract-shard", "cache-features", "train", "evaluate", "register",
                        "ablate-variant", "collect-ablation"})  # fmt: skip

_RETRIES, _PAUSE, _LONGEST_PAUSE = 2, "60s", "600s"


class Placement(Section):
    """The resources, volume and image policy of one pipeline's steps.

    Attributes:
        resources: The line's resources.
        claim: Name of the store's persistent volume claim; ``ReadWriteMany`` if steps may run on different nodes.
        pull_policy: When nodes pull the image.
    """

    resources: ResourcesConfig = ResourcesConfig()
    claim: str = "csflow-store"
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"

    def __call__(self, *tasks: PipelineTask) -> None:
        """Apply the placement to tasks that run a container."""
        for task in tasks:
            task.set_caching_options(enable_caching=False)
            self._surround(task)
            self._size(task)
            if task.name in REPEATABLE:
                task.set_retry(_RETRIES, _PAUSE, 2.0, _LONGEST_PAUSE)

    def _surround(self, task: PipelineTask) -> None:
        """Set the image policy, the store volume and the environment of a task."""
        from kfp import kubernetes

        kubernetes.set_image_pull_policy(task, self.pull_policy)
        kubernetes.mount_pvc(task, pvc_name=self.claim, mount_path=STORE)
        task.set_env_variable("CSFLOW_HOME", STORE)
        kubernetes.use_config_map_as_env(task, CONFIG_MAP, _same(REQUIRED_SETTINGS))
        kubernetes.use_config_map_as_env(task, CONFIG_MAP, _same(OPTIONAL_SETTINGS), optional=True)
        # Optional: on clouds the service account may replace the keys, and MLflow may require none.
        kubernetes.use_secret_as_env(task, STORAGE_SECRET, _same(STORAGE_KEYS), optional=True)
        kubernetes.use_secret_as_env(task, MLFLOW_SECRET, _same(MLFLOW_KEYS), optional=True)

    def _size(self, task: PipelineTask) -> None:
        """Set the CPUs, memory, accelerators and nodes of a task."""
        from kfp import kubernetes

        wanted = self.resources
        if task.name in COMPUTES:
            task.set_cpu_request(cpus(wanted.cpu))
            task.set_memory_request(whole_bytes(wanted.memory))
        if task.name not in TRAINS:
            return
        kubernetes.empty_dir_mount(
            task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=wanted.shared_memory
        )
        if wanted.gpus:
            task.set_accelerator_type(wanted.gpu_type).set_accelerator_limit(wanted.gpus)
        for key, value in wanted.node_selector.items():
            kubernetes.add_node_selector(task, label_key=key, label_value=value)
        for taint in wanted.tolerations:
            kubernetes.add_toleration(
                task,
                key=taint.key or None,
                operator=taint.operator,
                value=taint.value or None,
                effect=taint.effect or None,
            )


def local(*tasks: PipelineTask) -> None:
    """Leave tasks unchanged, for runs on this machine, which use all that it has."""
    for task in tasks:
        task.set_caching_options(enable_caching=False)


def placement_of(line: LineConfig | None) -> Placement:
    """Return the placement of a line's steps; without a line the default one."""
    return Placement(resources=line.resources) if line else Placement()


def cpus(quantity: str) -> str:
    """Convert a Kubernetes quantity of CPUs to what KFP accepts: a number, or thousandths.

    >>> cpus("500m"), cpus("1.5"), cpus("2k")
    ('500m', '1.5', '2000')
    """
    return quantity if re.fullmatch(r"[0-9.]+m?", quantity) else _whole(quantity)


def whole_bytes(quantity: str) -> str:
    """Convert a Kubernetes quantity of memory to what KFP accepts: a whole number of a unit.

    >>> whole_bytes("8Gi"), whole_bytes("1.5Gi"), whole_bytes("2k")
    ('8Gi', '1610612736', '2000')
    """
    accepted = re.fullmatch(r"[0-9]+([MGT]|[KMGT]i)?", quantity)
    return quantity if accepted else _whole(quantity)


def _whole(quantity: str) -> str:
    from kubernetes.utils.quantity import parse_quantity

    return str(math.ceil(parse_quantity(quantity)))


def _same(names: tuple[str, ...]) -> dict[str, str]:
    return {name: name for name in names}
