"""Where on a cluster a pipeline's steps run, and with what: the graphs only say the order.

Every step gets the store volume, the addresses (config map ``csflow``) and the credentials (secrets) as environment.
Steps that compute ask for the line's CPUs and memory; those that train also for its accelerators, its nodes and a
``/dev/shm`` of memory. Extraction runs in ONNX Runtime on the CPU and needs none of these. These are requests, no
limits: a step may take what its node has left.

KFP's own cache is off everywhere: steps find their earlier results by content, and a cached step would log nothing.

A step is tried again, with growing pauses, only if a second attempt cannot do harm:

================== ===== ==========================================================================================
step               again why
================== ===== ==========================================================================================
ingest             no    opens the MLflow run: another attempt would leave the first one's open for good
validate           yes   only reads, and writes its report over
plan-shards        yes   a pure function
extract-shard      yes   the feature store names entries by content; what is there is not computed again
cache-features     yes   the same
train              yes   goes on at its checkpoint, or finds the finished model under its key
evaluate           yes   computes the same again and writes over
register           yes   equal content keys give the version that is there
promote            no    deploys: a detector that failed its canary or smoke test was rolled back for a reason that
                         a person must see; ``csflow reconcile`` and the next run mend a promotion that was cut off
plan-ablation      no    opens the MLflow run of the ablation
ablate-variant     yes   a finished row is found; one that ended the process goes last the next time
collect-ablation   yes   writes its tables over
================== ===== ==========================================================================================

A step that is tried again takes the marks of its failure off the MLflow run. Kubeflow Pipelines cannot tell an error
that passes from one that stays: bad data fails three times, within minutes and at no cost.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from csflow.config import LineConfig, ResourcesConfig, Section

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

STORE = "/var/lib/csflow"
"""Where the store volume is mounted; ``CSFLOW_HOME`` of every step."""

CONFIG_MAP, STORAGE_SECRET, MLFLOW_SECRET = "csflow", "csflow-storage", "csflow-mlflow"
REQUIRED_SETTINGS = ("MLFLOW_TRACKING_URI", "CSFLOW_ENDPOINTS")
"""Keys of the config map without which no step starts: a run would end in a database of the pod's own."""

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
_UNITS = {"m": Decimal("0.001"), "k": Decimal(1000), "M": Decimal(1000) ** 2, "G": Decimal(1000) ** 3,
          "T": Decimal(1000) ** 4, "Ki": Decimal(1024), "Mi": Decimal(1024) ** 2, "Gi": Decimal(1024) ** 3,
          "Ti": Decimal(1024) ** 4}  # fmt: skip


class Placement(Section):
    """Where and with what the steps of one pipeline run.

    Attributes:
        resources: Of the line.
        claim: Name of the persistent volume claim of the store; ``ReadWriteMany`` where steps may share no node.
        pull_policy: When nodes fetch the image.
    """

    resources: ResourcesConfig = ResourcesConfig()
    claim: str = "csflow-store"
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"

    def __call__(self, *tasks: PipelineTask) -> None:
        """Apply everything to tasks that run a container."""
        for task in tasks:
            task.set_caching_options(enable_caching=False)
            self._surround(task)
            self._size(task)
            if task.name in REPEATABLE:
                task.set_retry(_RETRIES, _PAUSE, 2.0, _LONGEST_PAUSE)

    def _surround(self, task: PipelineTask) -> None:
        """The image, the store and the environment."""
        from kfp import kubernetes

        kubernetes.set_image_pull_policy(task, self.pull_policy)
        kubernetes.mount_pvc(task, pvc_name=self.claim, mount_path=STORE)
        task.set_env_variable("CSFLOW_HOME", STORE)
        kubernetes.use_config_map_as_env(task, CONFIG_MAP, _same(REQUIRED_SETTINGS))
        kubernetes.use_config_map_as_env(task, CONFIG_MAP, _same(OPTIONAL_SETTINGS), optional=True)
        # Optional: on clouds the service account may stand for the keys, and MLflow may ask for none.
        kubernetes.use_secret_as_env(task, STORAGE_SECRET, _same(STORAGE_KEYS), optional=True)
        kubernetes.use_secret_as_env(task, MLFLOW_SECRET, _same(MLFLOW_KEYS), optional=True)

    def _size(self, task: PipelineTask) -> None:
        """Processors, memory, accelerators and nodes."""
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
    """Leave tasks where they are: for runs on this machine, which take what it has."""
    for task in tasks:
        task.set_caching_options(enable_caching=False)


def placement_of(line: LineConfig | None) -> Placement:
    """Placement of a line's steps; without a line the default one."""
    return Placement(resources=line.resources) if line else Placement()


def cpus(quantity: str) -> str:
    """A Kubernetes quantity of processors as KFP takes it: a number, or thousandths.

    >>> cpus("500m"), cpus("1.5"), cpus("2k")
    ('500m', '1.5', '2000')
    """
    number, unit = _split(quantity)
    return quantity if unit in ("", "m") else str(int(number * _UNITS[unit]))


def whole_bytes(quantity: str) -> str:
    """A Kubernetes quantity of memory as KFP takes it: whole numbers of its units.

    >>> whole_bytes("8Gi"), whole_bytes("1.5Gi"), whole_bytes("2k")
    ('8Gi', '1610612736', '2000')
    """
    number, unit = _split(quantity)
    if number == int(number) and unit not in ("m", "k"):
        return quantity
    return str(int(number * _UNITS.get(unit, Decimal(1))))


def _split(quantity: str) -> tuple[Decimal, str]:
    unit = quantity.lstrip("0123456789.")
    return Decimal(quantity.removesuffix(unit)), unit


def _same(names: tuple[str, ...]) -> dict[str, str]:
    return {name: name for name in names}
