"""Define what all sections of a line's YAML have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
"""A share strictly between 0 and 1."""

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
"""A share from 0 up to, but not including, 1."""

Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
"""A whole number from 1 to a billion: larger ones overflow somewhere below."""

_AMOUNT = r"^([1-9][0-9]*(\.[0-9]+)?|0\.[0-9]*[1-9][0-9]*)"

Quantity = Annotated[str, Field(pattern=_AMOUNT + "(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
"""A number of CPUs in the notation of Kubernetes, such as ``500m`` for half of one."""

Memory = Annotated[str, Field(pattern=_AMOUNT + "(k|M|G|T|Ki|Mi|Gi|Ti)?$")]
"""An amount of memory in the notation of Kubernetes, such as ``2Gi``; ``500m`` would be half a byte."""


class Section(BaseModel):
    """Base of all sections: immutable, exact types, finite numbers, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
