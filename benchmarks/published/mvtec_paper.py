"""The figures of the paper's Table 1, and averages over the same classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, Literal, NamedTuple, get_args

from pydantic import Field

from csflow.config import Section

Kind = Literal["texture", "object"]
Group = Literal["textures", "objects", "average"]


class PaperClass(Section):
    """The paper's figures for a class, as fractions.

    Attributes:
        kind: Texture or object.
        full: Image AUROC of a model fitted to all images.
        shots: Image AUROC of a model fitted to 16 images.
        others: Image AUROC of the other methods, by name.
    """

    kind: Kind
    full: float
    shots: float
    others: dict[str, float] = Field(default={})


class PaperAverage(Section):
    """An average over classes as the paper prints it; fields as in :class:`PaperClass`."""

    full: float
    shots: float
    others: dict[str, float]


class PaperTable(Section):
    """The paper's Table 1.

    Attributes:
        classes: By the name of the class's folder.
        averages: Of textures, objects and all.
        joint: Average over the classes of one model fitted to all of them (section 4.5).
    """

    classes: dict[str, PaperClass]
    averages: dict[Group, PaperAverage]
    joint: float

    def of(self, group: Group) -> list[str]:
        """Return the names of the classes in an average."""
        kinds = {"textures": ("texture",), "objects": ("object",), "average": ("texture", "object")}[group]
        return [name for name, one in self.classes.items() if one.kind in kinds]


class Average(NamedTuple):
    """The mean image AUROC over those of the paper's classes that were measured.

    Attributes:
        value: The mean.
        classes: Number of classes that were measured.
        of: Number of classes in the paper.
    """

    value: float
    classes: int
    of: int

    @property
    def is_complete(self) -> bool:
        """Return True if it is over the same classes as the paper's average, and so comparable to it."""
        return self.classes == self.of


def averages(rows: Sequence[Mapping[str, Any]], method: str, quoted: PaperTable) -> dict[Group, Average]:
    """Average the image AUROC of a method over textures, objects and all classes of the paper.

    Classes that were not measured are left out, and so are classes that the paper does not have.
    """
    measured = {
        row["class"]: row["image_auroc"]["mean"] for row in rows if row["method"] == method and "error" not in row
    }
    found: dict[Group, Average] = {}
    for group in get_args(Group):
        names = quoted.of(group)
        values = [measured[name] for name in names if name in measured]
        if values:
            found[group] = Average(mean(values), len(values), len(names))
    return found
