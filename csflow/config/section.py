"""Define what all sections of a line's YAML have in common."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from csflow.errors import ConfigError

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
"""A share strictly between 0 and 1."""

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
"""A share from 0 up to, but not including, 1."""

Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
"""A whole number from 1 to a billion: larger ones overflow somewhere below."""

_AMOUNT = r"^([1-9][0-9]*(\.[0-9]+)?|0\.[0-9]*[1-9][0-9]*)"

Quantity = Annotated[str, Field(pattern=_AMOUNT + "(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
"""A number of CPUs in the notation of Kubernetes, such as ``500m`` for half of one."""

_MEMORY = _AMOUNT + "(k|M|G|T|Ki|Mi|Gi|Ti)?$"

Memory = Annotated[str, Field(pattern=_MEMORY)]
"""An amount of memory in the notation of Kubernetes, such as ``2Gi``; ``500m`` would be half a byte."""

_UNITS = {None: 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def bytes_of(memory: str) -> int:
    """Return the bytes of an amount of memory in the notation of Kubernetes.

    Raises:
        ConfigError: If it is none.
    """
    found = re.fullmatch(_MEMORY, memory, re.ASCII)
    if found is None:
        raise ConfigError(f"{memory!r} is no amount of memory. Expected a number of bytes, or one such as 800M or 4Gi.")
    return int(float(found[1]) * _UNITS[found[found.re.groups]])


class Section(BaseModel):
    """Base of all sections: immutable, exact types, finite numbers, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
