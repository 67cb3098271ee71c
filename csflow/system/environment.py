"""List the environment variables that csflow, its launchers and its libraries read.

The reference page of the documentation is made from this table. A test compares it with what the code reads.
"""

from __future__ import annotations

from csflow.system.library_variables import LIBRARIES
from csflow.system.variable import Group as Group
from csflow.system.variable import Variable as Variable

_OURS = (
    Variable(
        "CSFLOW_PROJECT",
        "Folder of the project: the one that holds `lines/` and `pipelines/`. `csflow --project DIR` sets it.",
        "the nearest project, from the current folder upwards",
        "/srv/factory",
        "all commands",
    ),
    Variable(
        "CSFLOW_HOME",
        "Folder of the workspace: data, features, models, runs, endpoints and MLflow's database.",
        "`.csflow` in the project's folder, without a project in the current one",
        "/srv/csflow",
        "all commands and steps",
    ),
    Variable(
        "CSFLOW_LINES",
        "Folder that holds the YAML files of the lines.",
        "`lines` in the project's folder, without a project in the current one",
        "/srv/factory/lines",
        "all commands that take a line",
    ),
    Variable(
        "CSFLOW_STORE",
        "Store on S3 that all runs share, for features and published detectors.",
        "no shared store: folders of the workspace",
        "s3://factory/csflow",
        "feature cache, promotion, `csflow prune`",
    ),
    Variable(
        "CSFLOW_ENDPOINTS",
        "Where lines are served: `local` (a process of this machine) or `kubernetes` (an InferenceService).",
        "`local`",
        "kubernetes",
        "promotion, rollback, `csflow endpoint`, `csflow reconcile`",
    ),
    Variable(
        "CSFLOW_NAMESPACE",
        "Namespace of the InferenceServices, and of runs on a Kubeflow Pipelines server with several users.",
        "the namespace of the pod or kubeconfig, else `csflow`",
        "factory",
        "endpoints on a cluster, submission, schedules",
    ),
    Variable(
        "CSFLOW_IMAGE",
        "Container image that every step runs in.",
        "`csflow-train:VERSION`",
        "registry.example/csflow-train:0.5.0",
        "compiled pipelines, submission, `--runner docker`",
    ),
    Variable(
        "CSFLOW_SERVE_IMAGE",
        "Container image of the InferenceServices.",
        "the image of the cluster's serving runtime",
        "registry.example/csflow-serve:0.5.0",
        "endpoints on a cluster",
    ),
    Variable(
        "CSFLOW_TOKENS",
        "SHA-256 of the tokens that a model server accepts, separated by commas or spaces; `csflow token` makes them. "
        "Those of `--tokens FILE` are accepted as well.",
        "no tokens: whoever reaches the server may use it",
        "press-2:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "`csflow serve`, `python -m csflow.adapters.serving`; not the endpoints that promotions start on loopback",
    ),
    Variable(
        "CSFLOW_KFP_URL",
        "Address of the Kubeflow Pipelines server.",
        "no server: submitting, scheduling and its part of the status end with an error that says so",
        "http://127.0.0.1:8888",
        "submission, schedules, status",
    ),
    Variable(
        "CSFLOW_SERVICE_ACCOUNT",
        "Kubernetes service account of the pods that run the steps.",
        "the server's own",
        "csflow-steps",
        "submission, schedules",
    ),
    Variable(
        "KF_PIPELINES_SA_TOKEN_PATH",
        "File with the bearer token for the Kubeflow Pipelines server; read again for every request.",
        "no token is sent",
        "/var/run/secrets/kubeflow/pipelines/token",
        "submission, schedules, status",
    ),
    Variable(
        "SSL_CERT_FILE",
        "File of the certificate authorities that are trusted, for a server with a certificate of your own.",
        "the authorities of the system",
        "/etc/ssl/factory-ca.pem",
        "connections to the Kubeflow Pipelines server; passed on to containers",
    ),
    Variable(
        "XDG_CACHE_HOME",
        "Folder of the user's caches; backbone weights from S3 are kept in `csflow/weights` below it.",
        "`~/.cache`",
        "/var/cache",
        "backbone weights (`features.weights: s3://…`)",
    ),
    Variable(
        "ONEDNN_MAX_CPU_ISA",
        "Limits the instructions that oneDNN may use. With a limit below bfloat16, `training.precision: auto` trains "
        "in float32.",
        "`ALL`",
        "AVX2",
        "training on CPUs",
    ),
    Variable(
        "CSFLOW_TEST_DATA",
        "Folder of the Magnetic Tile Defects images for the tests marked `real`.",
        "these tests are skipped",
        "/srv/test-data",
        "the test suite; not passed on to containers",
    ),
)

_INTERNAL = (
    Variable(
        "CSFLOW_MARK",
        "Prefix of the progress lines of a step, by which the local runner recognises them.",
        "no prefix",
        "csflow>> ",
        "local runs",
        "internal",
    ),
    Variable(
        "CSFLOW_ERROR_FILE",
        "File to which a failing step writes its message.",
        "the message is not written to a file",
        "/srv/csflow/error.json",
        "local runs",
        "internal",
    ),
    Variable(
        "CSFLOW_FAMILY",
        "Marks of the process families that a process belongs to, by which a run finds all it has started.",
        "the process belongs to no run",
        "4f1c…",
        "local runs, training with torchrun, local endpoints",
        "internal",
    ),
    Variable(
        "CSFLOW_OWNER",
        "The command that a step belongs to, as JSON: host, workspace, process id and start.",
        "the MLflow run is never closed by a later run of the line",
        '`{"host": "line-3", …}`',
        "local runs and ablations",
        "internal",
    ),
    Variable(
        "CSFLOW_VERSION",
        "Version that a model server reports; the InferenceService of a line sets it.",
        "the first 12 digits of the detector's digest",
        "7",
        "the model server",
        "internal",
    ),
    Variable("RANK", "Number of the process among all.", "`0`", "1", "training with torchrun", "internal"),
    Variable("WORLD_SIZE", "Number of training processes.", "`1`", "2", "training with torchrun", "internal"),
    Variable("LOCAL_RANK", "Number of the process on its machine.", "`0`", "1", "training with torchrun", "internal"),
    Variable(
        "LOCAL_WORLD_SIZE",
        "Number of training processes on this machine.",
        "`LOCAL_RANK` + 1",
        "2",
        "training with torchrun",
        "internal",
    ),
    Variable(
        "PYTHONPATH",
        "Folders that Python imports from; csflow puts its own in front for training processes.",
        "empty",
        "/srv/csflow/src",
        "training with torchrun",
        "internal",
    ),
)

VARIABLES: tuple[Variable, ...] = (*_OURS, *LIBRARIES, *_INTERNAL)
"""All variables, those that users set first."""
