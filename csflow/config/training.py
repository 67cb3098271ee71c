"""Say how a flow is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from csflow.config.section import Positive, Section


class TrainingConfig(Section):
    """Optimiser and run length."""

    epochs: Positive = Field(
        default=60,
        description="How often the flow sees every training image. The last epoch is kept: nothing is chosen on test "
        "images.",
        examples=[12, 60, 240],
    )
    batch_size: Positive = Field(default=16, description="Number of images in one optimiser step.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        default=2e-4, description="Learning rate of Adam.", examples=[1e-3]
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="constant",
        description="How the learning rate changes: not at all (`constant`, as in the paper), or a warm-up and then "
        "half a cosine wave down to 0 (`cosine`).",
    )
    averaging: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Keep the mean of the weights over this share of all steps, counted from the end, instead of the "
        "last weights.",
        examples=[0.25],
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.5, 0.9), description="Decay rates of Adam's averages of the gradient and of its square."
    )
    eps: Annotated[float, Field(gt=0)] = Field(
        default=1e-8, description="Adam's constant in the denominator. The authors' code uses 1.0e-4."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=1e-5, description="Weight decay of Adam (L2).")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="Gradients with a larger norm are scaled down to this one."
    )
    seed: Annotated[int, Field(ge=0, le=4_000_000_000)] = Field(
        default=0, description="Seed of everything that is drawn at random. Equal inputs and seed give equal models."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Number format of the computation. `auto` takes bfloat16 where the processor has matrix units for "
        "it, and float32 elsewhere.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="Where to train. `auto` takes a GPU if there is one."
    )
    checkpoint_seconds: Annotated[float, Field(gt=0)] = Field(
        default=180.0, description="Seconds between two checkpoints, from which a killed training resumes."
    )
