"""Say which images are held out, what the threshold promises, and what the data and promotion gates require."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from csflow.config.section import Fraction, Positive, Section, Share


class RolesConfig(Section):
    """Shares of the good training images that are permanently held out from fitting."""

    calibrate: Share = Field(
        default=0.2,
        description="Share of the good training images that sets the threshold. 0 needs `calibration: none`.",
    )
    gate: Share = Field(
        default=0.1,
        description="Share of the good training images that compares a new detector with the one in service, on lines "
        "without labelled defects.",
    )
    shots: Positive | None = Field(
        default=None,
        description="Fit only this number of the remaining images, drawn with `training.seed`; all by default.",
        examples=[16],
    )

    @model_validator(mode="after")
    def _something_left_to_fit(self) -> Self:
        if self.calibrate + self.gate >= 1:
            raise ValueError(f"calibrate + gate must stay below 1, got {self.calibrate + self.gate:g}")
        return self


class CalibrationConfig(Section):
    """The promise of the threshold: a false-alarm rate of at most ``alpha``."""

    alpha: Fraction = Field(
        default=0.05,
        description="Largest false-alarm rate: the share of good parts that may be called defective. 0.05 needs 19 "
        "good images held out, 0.01 needs 99.",
        examples=[0.05, 0.01],
    )
    confidence: Fraction | None = Field(
        default=None,
        description="Without it the rate holds on average over calibrations (split conformal). With it, the rate "
        "holds for this very threshold with this probability (tolerance limit), which needs more images.",
        examples=[0.95],
    )


class QualityConfig(Section):
    """Bounds that the data gate checks before anything is trained."""

    min_train: Positive = Field(default=20, description="Smallest number of good training images.")
    min_test_good: Annotated[int, Field(ge=0)] = Field(default=1, description="Smallest number of good test images.")
    min_test_defective: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Smallest number of defective test images."
    )
    min_side: Positive = Field(default=32, description="Smallest side of an image in pixels.")
    max_side: Positive = Field(default=16384, description="Largest side of an image in pixels.")
    modes: tuple[str, ...] = Field(
        default=("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "I;16", "I"),
        description="Colour modes of images that are allowed, as Pillow names them.",
        examples=[["RGB"], ["L", "I;16"]],
    )


class GateConfig(Section):
    """The conditions under which a new detector (the challenger) may replace the one in service (the champion)."""

    margin: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.01, description="Image AUROC that the challenger may lose against the best champion so far."
    )
    min_recall: Share = Field(
        default=0.5,
        description="Smallest share of the defective test images that a detector must find at its threshold to go into "
        "service; 0 asks for none. A challenger below it may replace a champion that finds no more.",
        examples=[0.5, 0.9],
    )
    min_auroc: Annotated[float, Field(ge=0.5, lt=1)] = Field(
        default=0.6,
        description="Smallest image AUROC of a detector in service. 0.5 is chance, which is never promoted.",
        examples=[0.6, 0.9],
    )
    confidence: Fraction = Field(
        default=0.95, description="Confidence with which it must be shown that no more than the margin is lost."
    )
    bootstrap: Positive = Field(
        default=2000, description="Number of bootstrap samples that the comparison draws from the test images."
    )
