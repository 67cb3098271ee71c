"""Add new images to a line's data repository, or change nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from csflow.adapters import versioning
from csflow.config import LineConfig
from csflow.data.image_folders import images_below, masks_below, refuse_unclear_masks
from csflow.data.manifest import Manifest, build_manifest
from csflow.errors import DataError, UsageError
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


@dataclass(frozen=True)
class Added:
    """The result of adding images to a line.

    Attributes:
        manifest: The line's new manifest.
        files: Paths of the new files, relative to the folder of the line's data.
        data_md5: DVC's hash of the tracked folder.
        commit: The commit that records the new images.
    """

    manifest: Manifest
    files: tuple[str, ...]
    data_md5: str
    commit: str


def add_images(line: LineConfig, addition: Addition) -> Added:
    """Add images to a line, check the result with the data gate, and record, push and commit it.

    If the name of an image is taken, the start of its hash is appended: ``1.png`` becomes ``1-3f2a9c01.png``.

    Raises:
        DataError: If the line already has one of the images, the data gate refuses the result, or the repository
            cannot be written. In each case nothing has changed.
    """
    images = images_below(addition.folder)
    masks = _masks_of(addition, images)
    working_copy = versioning.open_working_copy(line.data)
    manifest = build_manifest(working_copy.root, line=line.line, roles=line.roles)
    hashes = {name: sha256_file(path) for name, path in images.items()}
    _refuse_duplicates(manifest, images, hashes)
    taken = {PurePosixPath(path).stem for path in manifest.frame["path"] if path.startswith(f"{addition.place}/")}
    copies: dict[str, Path] = {}
    for name, source in images.items():
        stem = PurePosixPath(name).stem
        new = stem if stem not in taken else f"{stem}-{hashes[name][:8]}"
        taken.add(new)
        copies[f"{addition.place}/{new}{source.suffix}"] = source
        if mask := masks.get(f"{stem}_mask"):
            copies[f"ground_truth/{addition.defect}/{new}_mask{mask.suffix}"] = mask
    with _placed(working_copy.root, copies):
        result = build_manifest(working_copy.root, line=line.line, roles=line.roles)
        _require_quality(result, line)
        message = f"{line.line}: {len(images)} images to {addition.place}"
        recorded = versioning.add_and_push(working_copy.repository, working_copy.tracked, message)
    return Added(result, tuple(copies), recorded.md5, recorded.commit)


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


def _refuse_duplicates(manifest: Manifest, images: dict[str, Path], hashes: dict[str, str]) -> None:
    """Refuse images whose content the line already has, or that are given twice, under any name or split."""
    owner = dict(zip(manifest.frame["sha256"], manifest.frame["path"], strict=True))
    duplicates = []
    for name, path in images.items():
        if known := owner.get(hashes[name]):
            duplicates.append(f"{path} is {known}")
        owner.setdefault(hashes[name], str(path))
    if duplicates:
        raise DataError(
            f"{len(duplicates)} of {len(images)} images are there already: {shorten(duplicates)}. Remove them."
        )


@contextmanager
def _placed(root: Path, copies: dict[str, Path]) -> Iterator[None]:
    """Copy new files into the working copy; if the block fails, remove them and their new folders again."""
    made: list[Path] = []
    try:
        for name, source in copies.items():
            target = root / name
            made += [folder for folder in reversed(target.parents) if not folder.exists()]
            target.parent.mkdir(parents=True, exist_ok=True)
            made.append(target)
            shutil.copyfile(source, target)
        yield
    except BaseException as error:
        for path in reversed(made):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise DataError(f"Cannot copy into {root}: {error}. Check disk space and permissions.") from error
        raise


def _require_quality(manifest: Manifest, line: LineConfig) -> None:
    from csflow.adapters.data_quality import run_data_gate

    report = run_data_gate(manifest, line.quality, line.features.bit_depth)
    if not report.success:
        reasons = [f"{failure.explanation} ({shorten(failure.files)})" for failure in report.failures]
        raise DataError("The data gate refuses the result; nothing was added:\n" + "\n".join(f"- {r}" for r in reasons))
