"""Add new images to a line's data repository, or change nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from csflow.adapters.versioning import ImageChange
from csflow.config import LineConfig
from csflow.data.image_folders import images_below, masks_below, refuse_unclear_masks
from csflow.data.manifest import Manifest
from csflow.errors import DataError, UsageError
from csflow.runs.change_images import Changed, carry_out, working_copy_of
from csflow.system.files import sha256_file
from csflow.system.wording import shorten


@dataclass(frozen=True)
class Addition:
    """Images to add, with their split and type of defect.

    Attributes:
        folder: Folder of the new images.
        split: ``train`` or ``test``.
        defect: Type of defect; '' for good images.
        masks: Folder of masks named like the images (or with ``_mask`` added).
    """

    folder: Path
    split: str = "train"
    defect: str = ""
    masks: Path | None = None

    def __post_init__(self) -> None:
        """Refuse combinations that contradict each other."""
        if self.split not in {"train", "test"}:
            raise UsageError(f"There is no split {self.split!r}. Give train or test.")
        if self.defect and self.split == "train":
            raise UsageError("Training images must be good. Add defective images with --split test.")
        if self.defect.lower() == "good" or "/" in self.defect or self.defect.startswith("."):
            raise UsageError(f"{self.defect!r} cannot be a type of defect. Give a name like 'scratch'.")
        if self.masks and not self.defect:
            raise UsageError("Masks belong to defective images. Give --defect as well, or leave out --masks.")

    @property
    def place(self) -> str:
        """Return the folder of the images in the line's layout."""
        return f"{self.split}/{self.defect or 'good'}"


def add_images(line: LineConfig, addition: Addition, *, skip_known: bool = False) -> Changed:
    """Add images to a line, check the result with the data gate, and record, push and commit it.

    If the name of an image is taken, the start of its hash is appended: ``1.png`` becomes ``1-3f2a9c01.png``.

    Args:
        line: The line.
        addition: The images.
        skip_known: If True, leave out images that the line already has, or that are given twice, instead of refusing.

    Raises:
        DataError: If the line already has one of the images, the data gate refuses the result, or the repository
            cannot be written. In each case nothing has changed.
    """
    images = images_below(addition.folder)
    masks = _masks_of(addition, images)
    hashes = {name: sha256_file(path) for name, path in images.items()}
    with working_copy_of(line) as (working_copy, manifest):
        known = _known(manifest, images, hashes)
        if known and not skip_known:
            raise DataError(
                f"{len(known)} of {len(images)} images are there already: {shorten(list(known.values()))}. "
                "Remove them, or leave them out with --skip-known."
            )
        new = {name: path for name, path in images.items() if name not in known}
        if not new:
            return Changed(manifest, (), tuple(known.values()), "", "")
        inside = working_copy.root.relative_to(working_copy.repository)
        copies = {
            (inside / name).as_posix(): source for name, source in _copies(addition, manifest, new, masks, hashes)
        }
        change = ImageChange.of(
            working_copy.repository,
            working_copy.tracked,
            command="csflow data add",
            message=f"{line.line}: {len(new)} images to {addition.place}",
            added=list(copies),
            removed=[],
        )
        done = carry_out(line, working_copy, change, lambda: _copy(working_copy.repository, copies))
        return replace(done, skipped=tuple(known.values()))


def _copies(
    addition: Addition, manifest: Manifest, images: dict[str, Path], masks: dict[str, Path], hashes: dict[str, str]
) -> Iterator[tuple[str, Path]]:
    """Yield the path of every new image and mask in the line's layout, and the file to copy there."""
    taken = {PurePosixPath(path).stem for path in manifest.frame["path"] if path.startswith(f"{addition.place}/")}
    for name, source in images.items():
        stem = PurePosixPath(name).stem
        new = stem if stem not in taken else f"{stem}-{hashes[name][:8]}"
        taken.add(new)
        yield f"{addition.place}/{new}{source.suffix}", source
        if mask := masks.get(f"{stem}_mask"):
            yield f"ground_truth/{addition.defect}/{new}_mask{mask.suffix}", mask


def _copy(repository: Path, copies: dict[str, Path]) -> None:
    for name, source in copies.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, repository / name)


def _masks_of(addition: Addition, images: dict[str, Path]) -> dict[str, Path]:
    """Return the masks by ``STEM_mask`` and refuse masks without an image."""
    if addition.masks is None:
        return {}
    masks = {PurePosixPath(name).stem: path for name, path in masks_below(addition.masks).items()}
    stems = {f"{PurePosixPath(name).stem}_mask" for name in images}
    if orphans := [str(path) for stem, path in masks.items() if stem not in stems]:
        raise DataError(f"No image in {addition.folder} for the masks {shorten(orphans)}. Name them like their images.")
    refuse_unclear_masks(list(masks.values()))
    return masks


def _known(manifest: Manifest, images: dict[str, Path], hashes: dict[str, str]) -> dict[str, str]:
    """Return the images whose content the line already has, or that are given twice, each with the other one's name."""
    owner = dict(zip(manifest.frame["sha256"], manifest.frame["path"], strict=True))
    found = {}
    for name, path in images.items():
        if known := owner.get(hashes[name]):
            found[name] = f"{path} is {known}"
        owner.setdefault(hashes[name], str(path))
    return found
