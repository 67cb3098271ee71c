"""A product line's configuration: strict, frozen, unknown keys refused.

``lines/NAME.yaml`` is the only hand-edited configuration. A ``preset`` (or a list of them, later ones
win) from ``csflow/presets/`` lies underneath the keys of the file.
"""

from __future__ import annotations

import difflib
import json
import os
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from csflow.errors import ConfigError
from csflow.system.files import sha256_json

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]
Quantity = Annotated[str, Field(pattern=r"^[1-9][0-9]*(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]


class Section(BaseModel):
    """Base of all parts: immutable, exact types, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DataConfig(Section):
    """Which images: a folder in a git repository with DVC, at a revision."""

    repo: str = Field(default="..", description="Git repository (folder or URL); relative to the YAML file.")
    rev: str = Field(default="HEAD", description="Git revision of the data.")
    path: str = Field(description="Folder of the line inside the repository, in MVTec AD layout.")


class FeatureConfig(Section):
    """Which frozen features: together these keys name a feature space of the store."""

    backbone: str = Field(default="tf_efficientnet_lite0", description="timm model name.")
    stage: Positive = Field(default=6, description="Number of stages kept; the last block of this one is read.")
    weights: str = Field(default="package", description="hub, package, or a safetensors path or s3:// URI.")
    image_size: Positive = Field(default=384, description="Side of the largest input in pixels.")
    scales: Positive = Field(default=3, description="Number of input sizes, each half the one before.")
    downscale: Literal["antialias", "nearest"] = Field(
        default="antialias", description="Smaller inputs: resized image (paper) or nearest (authors' code)."
    )
    stages: tuple[Positive, ...] | None = Field(
        default=None,
        description="Several stages of one input, ascending, instead of stage and scales (PaDiM, PatchCore).",
    )
    rotations: Literal[1, 2, 4] = Field(default=1, description="Turns of the image that are read (DifferNet).")

    @model_validator(mode="after")
    def _one_way_of_making_levels(self) -> Self:
        if self.stages is None:
            return self
        if not self.stages or list(self.stages) != sorted(set(self.stages)):
            raise ValueError(f"stages needs ascending numbers, each once, got {list(self.stages)}")
        if self.scales != 1:
            raise ValueError(f"stages are read from one input, which needs scales: 1, got {self.scales}")
        return self

    @property
    def stages_read(self) -> tuple[int, ...]:
        """The stages whose last block is read, ascending."""
        return self.stages or (self.stage,)


class FlowConfig(Section):
    """Shape of the cross-scale flow (paper 3.2)."""

    blocks: Positive = Field(default=4, description="Number of coupling blocks.")
    hidden: Positive = Field(default=256, description="Hidden channels of the internal networks (paper: 1024).")
    kernel_sizes: tuple[Positive, ...] | None = Field(
        default=None, description="One odd size a block; default 3 for all but the last, 5 for that."
    )
    clamp: Annotated[float, Field(gt=0)] = Field(default=3.0, description="Soft clamp alpha of the log-scale.")
    standardize: bool = Field(default=True, description="Per-channel affine map from the training features first.")
    scales: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, description="Scales the flow reads, 0 the finest; all by default."
    )
    fusion: Literal["cross", "separate", "concatenated"] = Field(
        default="cross",
        description="Scales exchange in every block, not at all, or are enlarged and joined before (paper, Table 3).",
    )

    @model_validator(mode="after")
    def _scales_once(self) -> Self:
        if self.scales is not None and (not self.scales or list(self.scales) != sorted(set(self.scales))):
            raise ValueError(f"scales needs ascending numbers, each once, got {list(self.scales)}")
        if self.scales and self.fusion == "cross" and self.scales[-1] - self.scales[0] >= len(self.scales):
            raise ValueError(f"scales {list(self.scales)} leaves one out, but fusion cross needs neighbours")
        return self

    @model_validator(mode="after")
    def _kernels_fit_blocks(self) -> Self:
        sizes = self.kernel_sizes
        if sizes is not None and (len(sizes) != self.blocks or any(size % 2 == 0 for size in sizes)):
            raise ValueError(f"kernel_sizes needs {self.blocks} odd numbers (one a block), got {list(sizes)}")
        return self

    @property
    def kernels(self) -> tuple[int, ...]:
        """Kernel size of each block: ``(3, …, 3, 5)`` unless given."""
        return self.kernel_sizes or (3,) * (self.blocks - 1) + (5,)


class TrainingConfig(Section):
    """Optimiser and run length."""

    epochs: Positive = 60
    batch_size: Positive = 16
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    schedule: Literal["constant", "cosine"] = Field(
        default="constant",
        description="Learning rate as it is (paper), or warmed up and then down to 0 in a half wave.",
    )
    averaging: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Mean of the weights over this share of all steps, the last ones; None: the last weights.",
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.5, 0.9)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 180.0


class ScoringConfig(Section):
    """What a flow's latents are summed up to."""

    score: Literal["mean", "nll", "max"] = Field(
        default="mean", description="Mean z² / 2 (authors), exact negative log-likelihood, or the map's maximum."
    )
    map: Literal["finest", "all"] = Field(
        default="finest", description="Squared norm at the finest scale (paper), or the mean over all scales."
    )


class PadimConfig(Section):
    """PaDiM: a normal distribution at every place."""

    dimensions: Positive = Field(default=100, description="Channels kept, drawn at random; all if there are fewer.")
    regularization: Annotated[float, Field(gt=0)] = Field(default=0.01, description="Added to every variance.")


class PatchcoreConfig(Section):
    """PatchCore: distance to the nearest of a thinned-out set of good patches."""

    coreset: Annotated[float, Field(gt=0, le=1)] = Field(default=0.1, description="Share of the patches kept.")
    largest: Positive = Field(default=10000, description="Most patches kept, whatever the share.")
    neighbours: Positive = Field(default=9, description="Patches that weigh the score; 1 does not weigh it.")


class RolesConfig(Section):
    """Shares of the good training images that are held out from fitting, for good."""

    calibrate: Share = Field(default=0.2, description="For the threshold; 0 needs 'calibration: none'.")
    gate: Share = Field(default=0.1, description="For the gate of lines without labelled defects.")
    shots: Positive | None = Field(default=None, description="Fit only so many of the rest, drawn with training.seed.")

    @model_validator(mode="after")
    def _something_left_to_fit(self) -> Self:
        if self.calibrate + self.gate >= 1:
            raise ValueError(f"calibrate + gate must stay below 1, got {self.calibrate + self.gate:g}")
        return self


class CalibrationConfig(Section):
    """The promise of the threshold: false-alarm rate at most ``alpha``."""

    alpha: Fraction = 0.05
    confidence: Fraction | None = Field(
        default=None, description="None: split conformal (on average). Else tolerance limit with this confidence."
    )


class QualityConfig(Section):
    """Bounds the data gate checks."""

    min_train: Positive = 20
    min_test_good: Annotated[int, Field(ge=0)] = 1
    min_test_defective: Annotated[int, Field(ge=0)] = 0
    min_side: Positive = 32
    max_side: Positive = 16384
    modes: tuple[str, ...] = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I")


class GateConfig(Section):
    """When a challenger may replace the champion."""

    margin: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.01, description="AUROC that may be lost.")
    confidence: Fraction = 0.95
    bootstrap: Positive = 2000


class CanaryStep(Section):
    """A share of the requests that goes to a new detector, and for how long before the next step."""

    percent: Annotated[int, Field(ge=1, le=99)] = Field(description="Share of the requests, in percent.")
    minutes: Annotated[float, Field(ge=0)] = Field(description="How long it must do well.")


class ServingConfig(Section):
    """The line's endpoint: a local process, or an InferenceService on a cluster."""

    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=0, description="Local endpoint; 0: any free port.")
    mode: Literal["standard", "knative"] = Field(
        default="standard", description="KServe deployment mode of the InferenceService."
    )
    canary: tuple[CanaryStep, ...] = Field(
        default=(), description="Steps of a promotion on a cluster, ascending; none: all requests at once."
    )
    max_error_rate: Share = Field(default=0.01, description="Share of failing requests that ends a canary.")
    replicas: Positive = Field(default=1, description="Least number of pods of the InferenceService.")
    cpu: Quantity = Field(default="1", description="CPUs a pod of the InferenceService asks for.")
    memory: Quantity = Field(default="2Gi", description="Memory a pod of the InferenceService asks for.")

    @model_validator(mode="after")
    def _canary_ascends(self) -> Self:
        shares = [step.percent for step in self.canary]
        if shares != sorted(set(shares)):
            raise ValueError(f"serving.canary needs ascending shares, each once, got {shares}")
        return self


class ScheduleConfig(Section):
    """When the line is retrained by the clock."""

    cron: str = Field(description="Minute, hour, day of month, month, day of week: '30 3 * * 1-5'.")
    timezone: str = Field(default="UTC", description="IANA zone the cron line is read in: Europe/Berlin.")
    enabled: bool = True


class Toleration(Section):
    """A taint of nodes that the line's training may run on all the same."""

    key: str = ""
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""


class ResourcesConfig(Section):
    """What the line's steps ask a cluster for; local runs take what the machine has."""

    cpu: Quantity = Field(default="2", description="CPUs of the steps that compute.")
    memory: Quantity = Field(default="8Gi", description="Memory of the steps that compute.")
    gpus: Annotated[int, Field(ge=0)] = Field(default=0, description="Accelerators for training.")
    gpu_type: str = Field(default="nvidia.com/gpu", description="Resource name of the accelerators.")
    shards: Positive = Field(default=1, description="Pods that extract features at once.")
    shared_memory: Quantity = Field(default="2Gi", description="Size of /dev/shm for training.")
    node_selector: dict[str, str] = Field(default={}, description="Labels of the nodes that may train.")
    tolerations: tuple[Toleration, ...] = ()


DetectorKind = Literal["csflow", "nearest-neighbour", "mahalanobis", "padim", "patchcore", "differnet"]


class LineConfig(Section):
    """Everything csflow knows about one product line."""

    line: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?$")]
    description: str = ""
    detector: DetectorKind = "csflow"
    data: DataConfig
    features: FeatureConfig = FeatureConfig()
    flow: FlowConfig = FlowConfig()
    training: TrainingConfig = TrainingConfig()
    scoring: ScoringConfig = ScoringConfig()
    padim: PadimConfig = PadimConfig()
    patchcore: PatchcoreConfig = PatchcoreConfig()
    roles: RolesConfig = RolesConfig()
    calibration: CalibrationConfig | Literal["none"] = CalibrationConfig()
    quality: QualityConfig = QualityConfig()
    gate: GateConfig = GateConfig()
    serving: ServingConfig = ServingConfig()
    schedule: ScheduleConfig | None = None
    resources: ResourcesConfig = ResourcesConfig()

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.roles.calibrate == 0 and self.calibration != "none":
            raise ValueError("roles.calibrate 0 leaves no images for the threshold: set 'calibration: none' too")
        if self.features.rotations > 1 and self.detector != "differnet":
            raise ValueError(f"features.rotations is for detector differnet, not {self.detector}: set it to 1")
        if self.features.stages and self.detector in ("csflow", "differnet"):
            raise ValueError(f"features.stages is not for detector {self.detector}: give stage and scales instead")
        read = self.flow.scales
        if read and read[-1] >= self.features.scales:
            raise ValueError(f"flow.scales {list(read)} needs features.scales above {read[-1]}")
        return self

    @property
    def model_name(self) -> str:
        """Name of the registered model."""
        return f"csflow-{self.line}"

    def with_seed(self, seed: int) -> LineConfig:
        """The same line trained from another seed."""
        return self.model_copy(update={"training": self.training.model_copy(update={"seed": seed})})

    def method_digest(self) -> str:
        """Digest of every key that changes what is trained or promised, the seed included.

        Where the data lies, how it is served and on which device it trains do not count.
        """
        chosen = self.model_dump(
            mode="json",
            include={"features", "scoring", "roles", "calibration"},
        )
        return sha256_json([chosen, self.training_digest()])

    def training_digest(self) -> str:
        """Digest of every key that decides what a model becomes on given features: equal ones need not train again."""
        parts: dict[str, set[str]] = {"padim": {"padim"}, "patchcore": {"patchcore"}}
        trained = self.detector in ("csflow", "differnet")
        chosen = self.model_dump(
            mode="json",
            include={"detector"} | ({"flow", "training"} if trained else parts.get(self.detector, set())),
            exclude={"training": {"device", "checkpoint_seconds"}},
        )
        return sha256_json([chosen, self.training.seed])


def presets() -> dict[str, dict[str, Any]]:
    """All presets by name, as they lie in ``csflow/presets/``."""
    folder = resources.files("csflow") / "presets"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): yaml.safe_load(f.read_text()) for f in files}


def lines_folder() -> Path:
    """``CSFLOW_LINES``, else ``lines`` in the current folder."""
    return Path(os.environ.get("CSFLOW_LINES", "lines"))


def line_names() -> list[str]:
    """Names of the lines that have a YAML file."""
    return sorted(path.stem for path in lines_folder().glob("*.yaml"))


def load_line(name_or_path: str | Path) -> LineConfig:
    """Read one line, by name (``lines/NAME.yaml``) or by the path of its YAML file.

    Raises:
        ConfigError: If there is no such line (the nearest names are suggested) or its YAML is wrong.
    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = lines_folder() / f"{name_or_path}.yaml"
    if not path.is_file():
        raise ConfigError(_unknown_line(str(name_or_path), path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read {path}: {error}. Expected YAML text in UTF-8.") from error
    return parse_line(text, source=path)


def parse_line(text: str, *, source: Path) -> LineConfig:
    """Validate a line's YAML text; relative ``data.repo`` is taken from the folder of ``source``.

    Raises:
        ConfigError: Naming each wrong key, its place and what is allowed there.
    """
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{source} holds {type(raw).__name__}, expected keys such as 'line:' and 'data:'.")
    merged = _with_presets(raw, source)
    line = parse_line_json(json.dumps(merged, default=str), source=source)
    repo = line.data.repo
    if "://" in repo or repo.startswith("git@") or Path(repo).is_absolute():
        return line
    absolute = str((source.resolve().parent / repo).resolve())
    return line.model_copy(update={"data": line.data.model_copy(update={"repo": absolute})})


def parse_line_json(text: str, *, source: str | Path = "line configuration") -> LineConfig:
    """Validate a line already merged with its presets, as handed from step to step.

    Raises:
        ConfigError: Naming each wrong key, its place and what is allowed there.
    """
    try:
        return LineConfig.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, str(source)))) from error


def _with_presets(raw: dict[str, Any], source: Path) -> dict[str, Any]:
    wanted = raw.get("preset", [])
    names = [wanted] if isinstance(wanted, str) else wanted
    known = presets()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{source}: preset: expected a name or a list of names, got {wanted!r}: {', '.join(known)}.")
    merged: dict[str, Any] = {}
    for name in names:
        if name not in known:
            raise ConfigError(f"{source}: no preset {name!r}. Known presets: {', '.join(known)}.")
        merged = merged_over(merged, known[name])
    return merged_over(merged, {key: value for key, value in raw.items() if key != "preset"})


def merged_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Keys of both; where both have one, ``above`` wins, section by section."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged_over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _unknown_line(name: str, path: Path) -> str:
    near = difflib.get_close_matches(Path(name).stem, line_names(), n=3, cutoff=0.4)
    known = ", ".join(line_names()) or "none"
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"There is no line {name!r}: {path} does not exist.{hint} Known lines: {known}."


def _explain(error: ValidationError, source: str) -> list[str]:
    """One sentence a problem: where, what was found, what is allowed."""
    sentences = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"] if part != "CalibrationConfig")
        if problem["type"] == "extra_forbidden":
            *parents, key = (part for part in problem["loc"] if part != "CalibrationConfig")
            allowed = _allowed_keys(tuple(str(part) for part in parents))
            near = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            sentences.append(f"{source}: unknown key {place!r}.{hint} Allowed here: {', '.join(allowed)}.")
        elif problem["type"] == "missing":
            sentences.append(f"{source}: key {place!r} is missing.")
        elif problem["type"] == "literal_error" and place.startswith("calibration.literal"):
            continue
        else:
            sentences.append(f"{source}: {place or 'the line'}: {problem['msg']}, got {problem['input']!r}.")
    return sentences


def _allowed_keys(parents: tuple[str, ...]) -> list[str]:
    sections: dict[str, type[BaseModel]] = {
        "data": DataConfig, "features": FeatureConfig, "flow": FlowConfig, "training": TrainingConfig,
        "scoring": ScoringConfig, "padim": PadimConfig, "patchcore": PatchcoreConfig, "roles": RolesConfig,
        "calibration": CalibrationConfig, "quality": QualityConfig, "gate": GateConfig, "serving": ServingConfig,
        "serving.canary": CanaryStep, "schedule": ScheduleConfig, "resources": ResourcesConfig,
        "resources.tolerations": Toleration,
    }  # fmt: skip
    # A list's items stand in it by number, a union's by the name of the class.
    place = ".".join(part for part in parents if not part.isdecimal() and not part.endswith("Config"))
    section = sections[place] if place else LineConfig
    names = sorted(section.model_fields)
    return names if parents else [*names, "preset"]
