"""Say which frozen features a detector reads."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from csflow.config.section import Positive, Section


class FeatureConfig(Section):
    """The frozen features that a detector reads; together these keys name a feature space of the store."""

    backbone: str = Field(
        default="tf_efficientnet_lite0",
        description="Name of the timm model whose first stages make the features; one of the EfficientNet family.",
        examples=["tf_efficientnet_lite0", "tf_efficientnet_b5.aa_in1k"],
    )
    stage: Positive = Field(
        default=6,
        description="Number of stages of the backbone that are kept; the output of the last one is the feature map.",
    )
    weights: str = Field(
        default="package",
        description="Where the backbone's weights come from: `package` (installed with csflow, works without a "
        "network), `hub` (timm's model hub), or the path or s3:// address of a safetensors file.",
        examples=["package", "hub", "s3://models/b5.safetensors"],
    )
    image_size: Positive = Field(
        default=384,
        description="Side in pixels that every image is resized to at the largest scale. Larger finds smaller "
        "defects and takes more time; it must be a multiple of the backbone's stride times 2 to the scales less one.",
        examples=[256, 384, 768],
    )
    scales: Positive = Field(
        default=3, description="Number of sizes at which every image is read, each half as large as the one before."
    )
    downscale: Literal["antialias", "nearest"] = Field(
        default="antialias",
        description="How the smaller sizes are made: `antialias` resizes the image (as the paper says), `nearest` "
        "leaves out pixels (as the authors' code does).",
    )
    bit_depth: Annotated[int, Field(ge=9, le=16)] | None = Field(
        default=None,
        description="Bits of a sample that the camera fills in 16-bit files, such as 10, 12 or 14. Without it 16-bit "
        "files are read as full 16 bit, and files that use less than a quarter of that range are refused.",
        examples=[12, 16],
    )
    stages: tuple[Positive, ...] | None = Field(
        default=None,
        description="Several stages of one input size, ascending, instead of `stage` and `scales`; it needs "
        "`scales: 1`. For PaDiM and PatchCore.",
        examples=[[2, 4, 5]],
    )
    rotations: Literal[1, 2, 4] = Field(
        default=1, description="Number of rotations at which every image is read, by quarter turns. For DifferNet."
    )

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
        """Return the stages whose last block is read, in ascending order."""
        return self.stages or (self.stage,)
