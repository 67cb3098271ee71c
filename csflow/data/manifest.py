"""List a line's images as a table: one row an image, with its split, role, defect, mask and content hash.

The images are stored in MVTec AD layout below a root folder::

    train/good/*            good images to learn from
    test/good/*             good images to test with
    test/DEFECT/*           defective images, one folder a type of defect
    ground_truth/DEFECT/STEM_mask.png   optional, the defective pixels are not 0
    groups.csv              optional, columns path,group: images of one part or batch
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from csflow.config import RolesConfig
from csflow.data.image_files import FoundImages, find_images
from csflow.errors import DataError
from csflow.system.cores import cores
from csflow.system.files import sha256_file, sha256_json, write_atomic
from csflow.system.wording import shorten

COLUMNS = ("path", "line", "group", "split", "role", "label", "defect", "mask", "sha256", "mask_sha256")
DIGEST_COLUMNS = ("path", "split", "group", "label", "defect", "sha256", "mask_sha256")
SPLITS = ("train", "test")
LAYOUT = "train/good, test/good, test/DEFECT and ground_truth/DEFECT (STEM_mask.png)"


@dataclass(frozen=True, eq=False)
class Manifest:
    """The table of images and the folder of its relative paths.

    Attributes:
        frame: One row an image, sorted by path, all columns text:
            ``path`` (posix, relative to ``root``), ``line``, ``group`` ('' if none), ``split`` (train, test),
            ``role`` (fit, calibrate, gate, test; '' for a defective image in train, which no step uses and the data
            gate refuses), ``label`` (good, defective), ``defect`` ('' if good),
            ``mask`` (path or ''), ``sha256`` of the image file, ``mask_sha256`` ('' if none).
        root: Folder of the images.
        left_out: Why files below ``root`` are not in the table, by their path; empty for a table that was loaded.
    """

    frame: pd.DataFrame
    root: Path
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.frame)

    @property
    def files(self) -> list[Path]:
        """Return the image files, in the order of the rows."""
        return [self.root / path for path in self.frame["path"]]

    @property
    def digest(self) -> str:
        """Return the SHA-256 over the identity of all images, independent of roles, root folder and row order."""
        return sha256_json(sorted(self.frame[list(DIGEST_COLUMNS)].values.tolist()))

    def rows(self, role: str | None = None, split: str | None = None, label: str | None = None) -> Manifest:
        """Return the images that have every given value."""
        frame = self.frame
        for column, value in (("role", role), ("split", split), ("label", label)):
            if value is not None:
                frame = frame[frame[column] == value]
        return Manifest(frame.reset_index(drop=True), self.root)

    def save(self, path: Path) -> None:
        """Write the table as CSV, atomically, without ``root``."""
        write_atomic(path, self.frame.to_csv(index=False, lineterminator="\n"))

    @classmethod
    def load(cls, path: Path, root: Path) -> Manifest:
        """Read a table written by :meth:`save`, for images below ``root``.

        Raises:
            DataError: If the file is missing or is not such a table.
        """
        try:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise DataError(f"Cannot read the manifest {path}: {error}. Run the ingest step again.") from error
        if tuple(frame.columns) != COLUMNS:
            found = ", ".join(frame.columns)
            raise DataError(f"{path} has the columns {found}; expected {','.join(COLUMNS)}. Run the ingest step again.")
        return cls(frame, root)


def role_of(key: str, roles: RolesConfig) -> str:
    """Return the role of a good training image, which never changes: it depends on its key and the shares alone.

    Args:
        key: The image's group, else the SHA-256 of its file.
        roles: Shares held out from fitting.

    Returns:
        ``calibrate``, ``gate`` or ``fit``.
    """
    fraction = int(sha256(key.encode()).hexdigest()[:16], 16) / 2**64
    if fraction < roles.calibrate:
        return "calibrate"
    return "gate" if fraction < roles.calibrate + roles.gate else "fit"


def build_manifest(root: Path, *, line: str, roles: RolesConfig) -> Manifest:
    """Read a folder in MVTec AD layout; the images are hashed, not decoded.

    Args:
        root: Folder of the images.
        line: Name of the line.
        roles: Shares held out from fitting.

    Raises:
        DataError: If there are no good training images, an image is outside of the layout, a mask belongs to no image,
            or ``groups.csv`` contradicts the files.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder. Expected {LAYOUT} in it.")
    found = find_images(root)
    images, masks = _sorted_by_layout(root, found)
    if not any(image.split == "train" and image.kind == "good" for image in images):
        raise DataError(f"No images in {root / 'train' / 'good'}. Expected {LAYOUT} below {root}.")
    mask_of = _match_masks(root, images, masks)
    groups = _read_groups(root, {image.path for image in images})
    hashes = _hashes(root, [image.path for image in images] + masks)
    records = [
        _row(image, line, groups.get(image.path, ""), mask_of.get(image.path, ""), hashes, roles) for image in images
    ]
    frame = pd.DataFrame(records, columns=list(COLUMNS), dtype=str)
    _refuse_shared_content(frame)
    return Manifest(frame, root, found.left_out)


class _Image(NamedTuple):
    """An image in the layout; ``kind`` is the name of its folder, ``good`` or a type of defect."""

    path: str
    split: str
    kind: str


def _sorted_by_layout(root: Path, found: FoundImages) -> tuple[list[_Image], list[str]]:
    """Tell images and masks apart by their folders; both stay sorted by path."""
    images: list[_Image] = []
    masks: list[str] = []
    strays: list[str] = []
    for path in found.images:
        match path.parts:
            case (("train" | "test") as split, kind, _) if kind == "good" or kind.lower() != "good":
                images.append(_Image(path.as_posix(), split, kind))
            case ("ground_truth", _, _):
                masks.append(path.as_posix())
            case _:
                strays.append(path.as_posix())
    if strays:
        raise DataError(f"{root}: outside of the layout: {shorten(strays)}. Expected {LAYOUT}; move or remove them.")
    return images, masks


def _match_masks(root: Path, images: Sequence[_Image], masks: Sequence[str]) -> dict[str, str]:
    """Assign the masks to their images."""
    by_name: dict[tuple[str, str], list[str]] = {}
    for image in images:
        if image.split == "test" and image.kind != "good":
            by_name.setdefault((image.kind, PurePosixPath(image.path).stem), []).append(image.path)
    matched: dict[str, str] = {}
    problems: list[str] = []
    for mask in masks:
        path = PurePosixPath(mask)
        stem = path.stem.removesuffix("_mask")
        owners = by_name.get((path.parent.name, stem), []) if path.stem.endswith("_mask") else []
        if len(owners) != 1:
            problems.append(f"{mask} ({len(owners)} images test/{path.parent.name}/{stem}.*)")
        elif owners[0] in matched:
            problems.append(f"{mask} (another mask for {owners[0]} is {matched[owners[0]]})")
        else:
            matched[owners[0]] = mask
    if problems:
        raise DataError(
            f"{root}: masks that do not fit: {shorten(problems, 10)}. Expected ground_truth/DEFECT/STEM_mask.png for "
            "exactly one image test/DEFECT/STEM.*, and one mask for an image. Rename or remove them."
        )
    return matched


def _read_groups(root: Path, known: set[str]) -> dict[str, str]:
    """Read the group of each image named in ``groups.csv``."""
    file = root / "groups.csv"
    if not file.is_file():
        return {}
    reader = csv.DictReader(StringIO(file.read_text(encoding="utf-8-sig"), newline=""))
    if reader.fieldnames is None or not {"path", "group"} <= set(reader.fieldnames):
        raise DataError(f"{file} has the columns {reader.fieldnames}; expected path,group.")
    groups: dict[str, str] = {}
    for row in reader:
        path, group = row["path"], row["group"] or ""
        if path not in known:
            raise DataError(f"{file} names {path!r}, which is not an image below {root}. Correct or remove the row.")
        if groups.setdefault(path, group) != group:
            raise DataError(f"{file} puts {path!r} into {groups[path]!r} and {group!r}. Keep one row.")
    return groups


def _hashes(root: Path, paths: Sequence[str]) -> dict[str, str]:
    try:
        with ThreadPoolExecutor(cores()) as pool:
            return dict(zip(paths, pool.map(lambda path: sha256_file(root / path), paths), strict=True))
    except OSError as error:
        raise DataError(f"Cannot read {error.filename}: {error.strerror}. Check its permissions.") from error


def _row(
    image: _Image, line: str, group: str, mask: str, hashes: dict[str, str], roles: RolesConfig
) -> tuple[str, ...]:
    """Return the values of :data:`COLUMNS` for one image."""
    digest = hashes[image.path]
    good = image.kind == "good"
    role = "test" if image.split == "test" else role_of(group or digest, roles) if good else ""
    label, defect = ("good", "") if good else ("defective", image.kind)
    return image.path, line, group, image.split, role, label, defect, mask, digest, hashes[mask] if mask else ""


def _refuse_shared_content(frame: pd.DataFrame) -> None:
    """Refuse the same image in two groups: it could be fitted and then serve as held-out evidence."""
    for _, same in frame[frame["split"] == "train"].groupby("sha256"):
        if same["group"].nunique() > 1:
            names = shorten([f"{path} ({group or 'no group'})" for path, group in same[["path", "group"]].to_numpy()])
            raise DataError(f"The same image is in different groups of groups.csv: {names}. Keep one of them.")
