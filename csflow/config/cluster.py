"""Say when a line is retrained by the clock, and what its steps request from a cluster."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from csflow.config.cron import find_zone, parse_cron
from csflow.config.section import Memory, Positive, Quantity, Section


class ScheduleConfig(Section):
    """The times at which the line is retrained."""

    cron: str = Field(
        description="Minute, hour, day of month, month and day of week, as in cron.",
        examples=["0 3 * * *", "30 3 * * 1-5"],
    )
    timezone: str = Field(
        default="UTC", description="IANA time zone in which the cron line is read.", examples=["Europe/Berlin"]
    )
    enabled: bool = Field(default=True, description="Start runs by the clock; false keeps the cron line for later.")

    @field_validator("cron")
    @classmethod
    def _cron_can_come(cls, cron: str) -> str:
        parse_cron(cron)
        return cron

    @field_validator("timezone")
    @classmethod
    def _zone_exists(cls, name: str) -> str:
        find_zone(name)
        return name


class Toleration(Section):
    """A taint of nodes on which the line's training may run all the same."""

    key: str = Field(default="", description="Key of the taint; empty matches all.", examples=["nvidia.com/gpu"])
    operator: Literal["Exists", "Equal"] = Field(
        default="Exists", description="`Exists` accepts any value of the taint, `Equal` only `value`."
    )
    value: str = Field(default="", description="Value of the taint, for `Equal`.")
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = Field(
        default="", description="Effect of the taint; empty matches all."
    )


class ResourcesConfig(Section):
    """What the line's steps request from a cluster; local runs take what the machine has."""

    cpu: Quantity = Field(default="2", description="CPUs of the steps that compute.", examples=["4"])
    memory: Memory = Field(default="8Gi", description="Memory of the steps that compute.", examples=["16Gi"])
    gpus: Annotated[int, Field(ge=0)] = Field(default=0, description="Number of accelerators for training.")
    gpu_type: str = Field(
        default="nvidia.com/gpu", description="Resource name of the accelerators, as Kubernetes knows it."
    )
    shards: Positive = Field(default=1, description="Number of pods that extract features at the same time.")
    shared_memory: Memory = Field(default="2Gi", description="Size of /dev/shm in the training pod.")
    node_selector: dict[str, str] = Field(
        default={}, description="Labels of the nodes that may train.", examples=[{"pool": "gpu"}]
    )
    tolerations: tuple[Toleration, ...] = Field(
        default=(),
        description="Taints of nodes on which training may run all the same.",
        examples=[[{"key": "nvidia.com/gpu"}]],
    )
