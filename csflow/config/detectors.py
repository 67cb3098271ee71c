"""Give the options of single kinds of detector."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from csflow.config.section import Positive, Section


class PadimConfig(Section):
    """PaDiM: a normal distribution of the features at every position."""

    dimensions: Positive = Field(
        default=100, description="Number of channels kept, drawn at random; all of them if there are fewer."
    )
    regularization: Annotated[float, Field(gt=0)] = Field(
        default=0.01, description="Added to every variance, so that the covariance can be inverted."
    )


class PatchcoreConfig(Section):
    """PatchCore: the distance to the nearest of a thinned-out set of good patches."""

    coreset: Annotated[float, Field(gt=0, le=1)] = Field(default=0.1, description="Share of the patches kept.")
    largest: Positive = Field(default=10000, description="Largest number of patches kept, whatever the share.")
    neighbours: Positive = Field(
        default=9, description="Number of patches whose distances weight the score; 1 leaves it unweighted."
    )
