"""Say how and where a line's detector is served."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from csflow.config.section import Memory, Positive, Quantity, Section, Share


class CanaryStep(Section):
    """A share of the requests that goes to a new detector, and for how long before the next step."""

    percent: Annotated[int, Field(ge=1, le=99)] = Field(
        description="Share of the requests that the new detector answers, in percent.", examples=[10]
    )
    minutes: Annotated[float, Field(ge=0)] = Field(
        description="Minutes for which it must do well before the next step.", examples=[30]
    )


class ServingConfig(Section):
    """The line's endpoint: a local process, or an InferenceService on a cluster."""

    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=0, description="Port of the local endpoint; 0 takes any free one, which can change at each promotion."
    )
    mode: Literal["standard", "knative"] = Field(
        default="standard", description="KServe deployment mode of the InferenceService on a cluster."
    )
    canary: tuple[CanaryStep, ...] = Field(
        default=(),
        description="Steps of a promotion on a cluster, with ascending shares. Without any, a new detector gets all "
        "requests at once after its smoke test.",
        examples=[[{"percent": 10, "minutes": 30}, {"percent": 50, "minutes": 30}]],
    )
    max_error_rate: Share = Field(
        default=0.01, description="Largest share of failing requests during a canary step; more ends the promotion."
    )
    takt_ms: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Most milliseconds that judging one image may take. `csflow check` compares an estimate with it, "
        "and `csflow choose` takes it if no other is given.",
        examples=[200],
    )
    replicas: Positive = Field(default=1, description="Smallest number of pods of the InferenceService.")
    cpu: Quantity = Field(
        default="1", description="CPUs that a pod of the InferenceService requests.", examples=["500m", "2"]
    )
    memory: Memory = Field(
        default="2Gi", description="Memory that a pod of the InferenceService requests.", examples=["2Gi"]
    )

    @model_validator(mode="after")
    def _canary_ascends(self) -> Self:
        shares = [step.percent for step in self.canary]
        if shares != sorted(set(shares)):
            raise ValueError(f"serving.canary needs ascending shares, each once, got {shares}")
        return self
