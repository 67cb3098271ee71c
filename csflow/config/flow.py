"""Say what the cross-scale flow looks like, and how its latents become a score."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from csflow.config.section import Positive, Section


class FlowConfig(Section):
    """Shape of the cross-scale flow (paper 3.2)."""

    blocks: Positive = Field(default=4, description="Number of coupling blocks, one after the other.")
    hidden: Positive = Field(
        default=256,
        description="Hidden channels of the networks inside the coupling blocks. More can learn more and takes more "
        "time and memory; the paper uses 1024.",
        examples=[64, 256, 1024],
    )
    kernel_sizes: tuple[Positive, ...] | None = Field(
        default=None,
        description="Kernel size of each block, odd numbers. By default 3 for all blocks but the last, which has 5.",
        examples=[[3, 3, 3, 5]],
    )
    clamp: Annotated[float, Field(gt=0)] = Field(
        default=3.0, description="Limit alpha of the soft clamp on the log-scale of a coupling."
    )
    standardize: bool = Field(
        default=True,
        description="Shift and scale every feature channel by the statistics of the training features first. The "
        "paper does not.",
    )
    scales: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None,
        description="Indices of the scales that the flow reads, 0 for the finest, ascending; all of them by default.",
        examples=[[0, 1]],
    )
    fusion: Literal["cross", "separate", "concatenated"] = Field(
        default="cross",
        description="How scales are combined: they exchange information in every block (`cross`, the paper's "
        "method), not at all (`separate`), or they are enlarged and joined beforehand (`concatenated`).",
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
        """Return the kernel size of each block: ``(3, …, 3, 5)`` unless given."""
        return self.kernel_sizes or (3,) * (self.blocks - 1) + (5,)


class ScoringConfig(Section):
    """How a flow's latents become a score and a map."""

    score: Literal["mean", "nll", "max"] = Field(
        default="mean",
        description="Score of an image: the mean of z²/2 over all latents (`mean`, as in the authors' code), the "
        "exact negative log-likelihood (`nll`), or the largest value of the map (`max`).",
    )
    map: Literal["finest", "all"] = Field(
        default="finest",
        description="Anomaly map: the squared norm of the latents at the finest scale (`finest`, as in the paper), or "
        "the mean over all scales (`all`).",
    )
