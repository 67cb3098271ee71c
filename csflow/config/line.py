"""Join the sections to the configuration of one product line."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from csflow.config.cluster import ResourcesConfig, ScheduleConfig
from csflow.config.data import DataConfig
from csflow.config.detector_kinds import KINDS
from csflow.config.detectors import PadimConfig, PatchcoreConfig
from csflow.config.features import FeatureConfig
from csflow.config.flow import FlowConfig, ScoringConfig
from csflow.config.judging import CalibrationConfig, GateConfig, QualityConfig, RolesConfig
from csflow.config.section import Section
from csflow.config.serving import ServingConfig
from csflow.config.training import TrainingConfig
from csflow.system.files import sha256_json

LINE_NAME = r"[a-z0-9]([-a-z0-9]{0,48}[a-z0-9])?"
"""Pattern of a line's name: it also names a registered model, an endpoint and Kubernetes objects."""


def _list_kinds(schema: dict[str, Any]) -> None:
    schema["enum"] = list(KINDS)


class LineConfig(Section):
    """Everything csflow knows about one product line."""

    line: Annotated[str, Field(pattern=f"^{LINE_NAME}$")] = Field(
        description="Name of the line: up to 50 lower-case letters, digits and inner hyphens. It also names the "
        "registered model and the endpoint.",
        examples=["bolts", "cell-7"],
    )
    description: str = Field(default="", description="One sentence about the line, for people.")
    detector: str = Field(
        default="csflow",
        description="Kind of detector to train. CS-Flow is the default; simpler kinds can win a line too.",
        json_schema_extra=_list_kinds,
    )
    data: DataConfig = Field(description="Which images the line has.")
    features: FeatureConfig = Field(default=FeatureConfig(), description="Which frozen features the detector reads.")
    flow: FlowConfig = Field(default=FlowConfig(), description="Shape of the flow, for kinds that train one.")
    training: TrainingConfig = Field(default=TrainingConfig(), description="How the flow is trained.")
    scoring: ScoringConfig = Field(default=ScoringConfig(), description="How latents become a score and a map.")
    padim: PadimConfig = Field(default=PadimConfig(), description="Options of `detector: padim`.")
    patchcore: PatchcoreConfig = Field(default=PatchcoreConfig(), description="Options of `detector: patchcore`.")
    roles: RolesConfig = Field(default=RolesConfig(), description="Which good images are held out from fitting.")
    calibration: CalibrationConfig | Literal["none"] = Field(
        default=CalibrationConfig(),
        description="What the threshold promises; `none` gives scores without decisions.",
    )
    quality: QualityConfig = Field(default=QualityConfig(), description="Bounds that the data gate checks.")
    gate: GateConfig = Field(default=GateConfig(), description="When a new detector may replace the one in service.")
    serving: ServingConfig = Field(default=ServingConfig(), description="How and where the detector is served.")
    schedule: ScheduleConfig | None = Field(
        default=None, description="When a cluster retrains the line; never by default."
    )
    resources: ResourcesConfig = Field(
        default=ResourcesConfig(), description="What the line's steps request from a cluster."
    )

    @field_validator("detector")
    @classmethod
    def _known_kind(cls, name: str) -> str:
        if name not in KINDS:
            near = difflib.get_close_matches(name, KINDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown kind of detector.{hint} Known kinds: {', '.join(KINDS)}")
        return name

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        kind = KINDS[self.detector]
        if self.roles.calibrate == 0 and self.calibration != "none":
            raise ValueError("roles.calibrate 0 leaves no images for the threshold: set 'calibration: none' too")
        if self.features.rotations > 1 and not kind.reads_rotations:
            able = ", ".join(each.name for each in KINDS.values() if each.reads_rotations)
            raise ValueError(f"features.rotations is for detector {able}, not {self.detector}: set it to 1")
        if self.features.stages and not kind.reads_stages:
            raise ValueError(f"features.stages is not for detector {self.detector}: give stage and scales instead")
        read = self.flow.scales
        if read and read[-1] >= self.features.scales:
            raise ValueError(f"flow.scales {list(read)} needs features.scales above {read[-1]}")
        return self

    def with_seed(self, seed: int) -> LineConfig:
        """Return the same line trained from another seed."""
        return self.model_copy(update={"training": self.training.model_copy(update={"seed": seed})})

    def method_digest(self) -> str:
        """Digest every key that changes what is trained or promised, the seed included.

        Where the data is stored, how it is served and on which device it trains do not count.
        """
        chosen = self.model_dump(mode="json", include={"features", "scoring", "roles", "calibration"})
        return sha256_json([chosen, self.training_digest()])

    def training_digest(self) -> str:
        """Digest every key that decides the result of training on given features; equal digests need no retraining."""
        chosen = self.model_dump(
            mode="json",
            include={"detector", *KINDS[self.detector].sections},
            exclude={"training": {"device", "checkpoint_seconds"}},
        )
        return sha256_json([chosen, self.training.seed])
