"""Import data sets and plain folders into the MVTec AD layout that :mod:`csflow.data.manifest` reads.

Every import is all or nothing: it is built in a hidden folder next to its destination, checked, and then moved.
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from csflow.config import LINE_NAME, QualityConfig, RolesConfig
from csflow.data.archives import ARCHIVES, extract
from csflow.data.image_files import say_left_out
from csflow.data.image_folders import defects_below, images_below, masks_by_kind, refuse_unclear_masks
from csflow.data.manifest import LAYOUT, build_manifest
from csflow.errors import DataError
from csflow.system.files import sha256_file
from csflow.system.wording import shorten

MTD_DEFECTS = ("Blowhole", "Break", "Crack", "Fray", "Uneven")
MVTEC_PARTS = ("train", "test", "ground_truth")


def import_mtd(source: Path, dest: Path) -> None:
    """Import Magnetic Tile Defects into ``dest``, split as by the authors of CS-Flow.

    ``train_filenames.txt`` names the good images to train on (761); the other good images (191) and all defective ones
    (392) are for testing. Masks are made binary at half their range; a defective image with an empty mask (there are
    four) counts as one without a mask.

    Args:
        source: Folder with ``MT_Free/Imgs``, ``MT_Blowhole/Imgs``, … and ``train_filenames.txt``.
        dest: Folder to create; it may exist if it is empty.

    Raises:
        DataError: If a part of the data set is missing (it is named) or ``dest`` is not empty.

    Reference:
        Huang, Qiu, Yuan: Surface defect saliency of magnetic tile, The Visual Computer 36, 2020.
    """
    good, train = _mtd_good(source)
    with _staged(dest, source) as staging:
        _refuse_used(dest)
        for image in good:
            _copy(image, staging / "line" / ("train" if image.name in train else "test") / "good" / image.name)
        for defect in MTD_DEFECTS:
            for image in _mtd_images(source, defect):
                kind = defect.lower()
                _copy(image, staging / "line" / "test" / kind / image.name)
                _write_binary_mask(
                    image.with_suffix(".png"), staging / "line" / "ground_truth" / kind / f"{image.stem}_mask.png"
                )
        _move_into_place(staging / "line", dest)


def _mtd_good(source: Path) -> tuple[list[Path], set[str]]:
    """Return the good images and the names of those to train on."""
    good = _mtd_images(source, "Free")
    names = source / "train_filenames.txt"
    if not names.is_file():
        raise DataError(f"{names} is missing: the authors' list of training images. Put it next to the MT_ folders.")
    train = set(names.read_text().split())
    lost = sorted(train - {image.name for image in good})
    if lost:
        raise DataError(f"{names} names images that are not in MT_Free/Imgs: {shorten(lost)}. The copy is incomplete.")
    return good, train


def _mtd_images(source: Path, kind: str) -> list[Path]:
    folder = source / f"MT_{kind}" / "Imgs"
    images = sorted(folder.glob("*.jpg"))
    if not images:
        raise DataError(f"No .jpg images in {folder}. Expected the folders MT_Free, MT_Blowhole, … each with Imgs/.")
    unmasked = [image.name for image in images if kind != "Free" and not image.with_suffix(".png").is_file()]
    if unmasked:
        raise DataError(f"{folder}: no mask (.png) for {shorten(unmasked)}. The copy is incomplete.")
    return images


def _write_binary_mask(source: Path, target: Path) -> None:
    """Write a mask of 0 and 255, unless no pixel of it is marked."""
    from csflow.data.images import opened_image

    with opened_image(source.read_bytes(), str(source)) as image:
        mask = image.convert("L").point([0] * 128 + [255] * 128)
    if mask.getbbox() is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        mask.save(target)


def import_mvtec(source: Path, dest: Path) -> list[str]:
    """Import MVTec AD, or any data in its layout, into ``dest``, one subfolder per class.

    A class becomes a line of the same name, in lower case and with ``-`` for ``_`` (``metal_nut``: ``metal-nut``).

    Args:
        source: Folder of class folders, one class folder, or an archive of either.
        dest: Folder for the lines; it may contain others already.

    Returns:
        Names of the lines.

    Raises:
        DataError: If the archive is damaged or unsafe, the layout is not that of MVTec AD, or a line exists already.
    """
    if (dest / "train").exists():
        raise DataError(f"{dest} is a line itself. Import several lines into a folder with one subfolder per line.")
    with _staged(dest, source) as staging:
        transfer: Callable[[Path, Path], None] = _copy
        classes = source
        if source.is_file():
            classes = staging / "archive" / _archive_stem(source)
            extract(source, classes)
            transfer = _move
        folders = {_line_name(folder.name): folder for folder in _class_folders(classes, source)}
        for line, folder in folders.items():
            _refuse_used(dest / line)
            _take_line(folder, staging / "lines" / line, transfer)
        dest.mkdir(parents=True, exist_ok=True)
        for line in folders:
            _move_into_place(staging / "lines" / line, dest / line)
    return sorted(folders)


def _class_folders(root: Path, source: Path) -> list[Path]:
    """Find the class folders: ``root`` itself, its subfolders, or theirs."""
    if not root.is_dir():
        raise DataError(f"{source} does not exist. Give a folder or an archive ({', '.join(ARCHIVES)}).")
    level = [root]
    for _ in range(3):
        classes = [folder for folder in level if any((folder / part).is_dir() for part in MVTEC_PARTS)]
        if classes:
            others = sorted(folder.name for folder in level if folder not in classes)
            if others:
                raise DataError(f"{source}: no train or test folder in {shorten(others)}. Expected {LAYOUT} per class.")
            return classes
        level = sorted(child for folder in level for child in folder.iterdir() if _is_visible_folder(child))
    raise DataError(f"{source} holds no class folder. Expected {LAYOUT} in it or in each of its folders.")


def _is_visible_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith((".", "__MACOSX"))


def _line_name(folder: str) -> str:
    """Turn the name of a folder into the name of a line."""
    name = re.sub(r"[ _.]+", "-", folder.lower()).strip("-")
    if not re.fullmatch(LINE_NAME, name):
        raise DataError(f"{folder!r} cannot name a line (letters, digits and '-', at most 50). Rename the folder.")
    return name


def _take_line(folder: Path, target: Path, transfer: Callable[[Path, Path], None]) -> None:
    """Transfer the files that the manifest of ``folder`` names, and the licence that belongs to them."""
    manifest = build_manifest(folder, line="import", roles=RolesConfig())
    say_left_out(manifest.left_out, "import", folder)
    frame = manifest.frame
    masks = [mask for mask in frame["mask"] if mask]
    refuse_unclear_masks([folder / mask for mask in masks])
    names = [*frame["path"], *masks]
    names += [name for name in ("groups.csv", "license.txt", "readme.txt") if (folder / name).is_file()]
    for name in names:
        transfer(folder / name, target / name)


def import_folder(
    dest: Path, *, good: Path, defective: Path | None = None, masks: Path | None = None, test_share: float = 0.2
) -> None:
    """Import a user's own images into ``dest``.

    Subfolders are searched as well, and their names become part of the file name (``monday/1.png``: ``monday_1.png``).
    The split of the good images depends on their content alone, so a repeated import splits them in the same way.

    Args:
        dest: Folder to create; it may exist if it is empty.
        good: Folder of good images.
        defective: Folder of defective images; its subfolders, if any, name the types of defect.
        masks: Folder laid out like ``defective``, with lossless masks of the same stem (or with ``_mask`` added), in
            which the defective pixels are not 0.
        test_share: Share of the good images that are for testing, between 0 and 1.

    Raises:
        DataError: If a folder is empty, two images would get one name, a mask has no image or is lossy, or
            ``dest`` is not empty.
    """
    kinds = defects_below(defective) if defective else {}
    if masks and not defective:
        raise DataError(f"Masks ({masks}) belong to defective images. Give --defective too.")
    with _staged(dest, good) as staging:
        _refuse_used(dest)
        for name, image in images_below(good).items():
            split = "test" if _split_fraction(sha256_file(image)) < test_share else "train"
            _copy(image, staging / "line" / split / "good" / name)
        _refuse_none_to_train(staging / "line", good, test_share)
        for kind, images in kinds.items():
            for name, image in images.items():
                _copy(image, staging / "line" / "test" / kind / name)
        for kind, drawn in masks_by_kind(masks, list(kinds)).items() if masks else ():
            for name, mask in drawn.items():
                _copy(mask, staging / "line" / "ground_truth" / kind / name)
        build_manifest(staging / "line", line="import", roles=RolesConfig())
        _move_into_place(staging / "line", dest)


def _refuse_none_to_train(line: Path, good: Path, test_share: float) -> None:
    """Refuse good images that are so few that all of them fell into the test split, and say how many are needed.

    Raises:
        DataError: If none is left to train on.
    """
    if (line / "train" / "good").exists():
        return
    count, needed = len(list((line / "test" / "good").iterdir())), QualityConfig().min_train
    raise DataError(
        f"{good} holds {count} good image{'s' * (count > 1)}, and the split by content (--test-share {test_share:g}) "
        f"takes all for testing: none is left to train on. The data gate wants at least {needed} to train on "
        f"(quality.min_train), so import about {math.ceil(needed / (1 - test_share))} good images or more."
    )


def _split_fraction(digest: str) -> float:
    """Map a digest to [0, 1), independently of the fraction that :func:`csflow.data.manifest.role_of` uses."""
    return int(sha256(f"split {digest}".encode()).hexdigest()[:16], 16) / 2**64


def _archive_stem(archive: Path) -> str:
    """Return the name of an archive without its suffixes, for an archive of one class without a folder."""
    return archive.name.split(".")[0]


@contextmanager
def _staged(dest: Path, source: Path) -> Iterator[Path]:
    """Yield a hidden folder next to ``dest``, removed afterwards; errors name ``dest`` or ``source`` instead."""
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=dest.parent, prefix=f".{dest.name}.") as name:
            try:
                yield Path(name)
            except DataError as error:
                message = str(error).replace(f"{name}/archive", str(source))
                raise DataError(re.sub(rf"{re.escape(name)}/lines?\b", str(dest), message)) from error
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or dest})"
        raise DataError(f"Cannot import into {dest}: {reason}. Check disk space and permissions.") from error


def _refuse_used(dest: Path) -> None:
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise DataError(f"{dest} already exists and is not empty. Choose another folder or remove it.")


def _move_into_place(staged: Path, dest: Path) -> None:
    _refuse_used(dest)
    dest.parent.mkdir(parents=True, exist_ok=True)
    staged.replace(dest)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise DataError(f"{source}: there is already a {target.name}. Rename one of them.")
    shutil.copyfile(source, target)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
