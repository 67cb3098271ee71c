"""List the kinds of detector that a line can name.

A new kind is one module and one entry here: the module offers ``fit`` and ``restore``
(:class:`csflow.detector.fitting.Implementation`), the entry says what the rest of csflow must know without importing
torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DetectorKind:
    """One kind of detector.

    Attributes:
        name: What a line's YAML calls it.
        title: What tables and figures call it.
        implementation: Module that fits and restores it.
        sections: Sections of the YAML that decide what it becomes.
        epochs: Trained in epochs; other kinds look at every image once.
        seeded: True if fitting draws something at random; otherwise a second seed would give the same result.
        fuses_scales: Reads a pyramid of scales that ``flow.scales`` can choose from.
        reads_stages: Can read several stages of one input (``features.stages``).
        reads_rotations: Can read several rotations of an image (``features.rotations``).
        native_stages: Stages at the strides that its paper reads; ``None`` if it reads what CS-Flow reads.
        quoted_auroc: Image AUROC on Magnetic Tile Defects in Table 2 of the CS-Flow paper; ``None`` if there is none.
    """

    name: str
    title: str
    implementation: str
    sections: tuple[str, ...] = ()
    epochs: bool = False
    seeded: bool = True
    fuses_scales: bool = False
    reads_stages: bool = True
    reads_rotations: bool = False
    native_stages: tuple[int, ...] | None = None
    quoted_auroc: float | None = None


_KINDS = "csflow.detector.kinds"

KINDS: dict[str, DetectorKind] = {
    kind.name: kind
    for kind in (
        DetectorKind(
            "csflow",
            "CS-Flow",
            f"{_KINDS}.cross_scale_flow",
            sections=("flow", "training"),
            epochs=True,
            fuses_scales=True,
            reads_stages=False,
            quoted_auroc=0.993,
        ),
        DetectorKind("nearest-neighbour", "1-NN", f"{_KINDS}.nearest_neighbour", seeded=False, quoted_auroc=0.978),
        DetectorKind("mahalanobis", "Mahalanobis", f"{_KINDS}.mahalanobis", seeded=False, quoted_auroc=0.980),
        # Blocks 7, 20 and 26 of EfficientNet-B5, which Defard et al. read, end or are inside of these stages.
        DetectorKind(
            "padim", "PaDiM", f"{_KINDS}.padim", sections=("padim",), native_stages=(2, 4, 5), quoted_auroc=0.987
        ),
        DetectorKind("patchcore", "PatchCore", f"{_KINDS}.patchcore", sections=("patchcore",), native_stages=(3, 5)),
        DetectorKind(
            "differnet",
            "DifferNet",
            f"{_KINDS}.differnet",
            sections=("flow", "training"),
            epochs=True,
            reads_stages=False,
            reads_rotations=True,
            quoted_auroc=0.977,
        ),
    )
}
"""Every kind by its name."""
