"""List a user's folders of images and masks by the names that the files get in a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from csflow.data.image_files import FORMATS, find_images, say_left_out
from csflow.data.masks import measure_mask
from csflow.errors import DataError
from csflow.system.wording import shorten


def images_below(folder: Path) -> dict[str, Path]:
    """List the images in ``folder`` and its subfolders by a flat name, sorted.

    Raises:
        DataError: If there are none, or two would get one name.
    """
    return _by_flat_name(folder, _found(folder))


def masks_below(folder: Path) -> dict[str, Path]:
    """List the masks in ``folder`` by their name in the layout, ``STEM_mask.SUFFIX``.

    Raises:
        DataError: If there are none, or two are for one image.
    """
    return _by_layout_name(images_below(folder))


def refuse_unclear_masks(masks: Sequence[Path]) -> None:
    """Refuse masks that mark nothing or everything, or went through a lossy format; all are named at once.

    Raises:
        DataError: If there are such masks, or one cannot be read.
    """
    problems = []
    for mask in masks:
        try:
            unclear = measure_mask(mask).unclear
        except DataError as error:
            problems.append(str(error))
            continue
        if unclear:
            problems.append(f"{mask} {unclear}")
    if problems:
        raise DataError(
            f"{len(problems)} of {len(masks)} masks cannot be used: {shorten(problems, 10)}. A mask is 0 where the "
            "part is good and another value, for instance 255, where it is defective. Save it as PNG, not smoothed, "
            "or leave out the mask of an image whose defect is not drawn."
        )


def _found(folder: Path) -> list[PurePosixPath]:
    """List the images below a folder, and say what is left out."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Expected image files in it or in its folders.")
    found = find_images(folder)
    say_left_out(found.left_out, "import", folder)
    if not found.images:
        raise DataError(f"{folder} holds no images. Expected image files ({', '.join(FORMATS)}).")
    return list(found.images)


def _by_flat_name(folder: Path, images: Sequence[PurePosixPath]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for image in images:
        name = "_".join(image.parts)
        if name in named:
            raise DataError(f"{folder / image} and {named[name]} would both be named {name}. Rename one of them.")
        named[name] = folder / image
    return named


def _by_layout_name(masks: dict[str, Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for name, path in masks.items():
        stem = f"{PurePosixPath(name).stem.removesuffix('_mask')}_mask"
        named[f"{stem}{path.suffix}"] = path
    if len(named) < len(masks):
        twice = [str(path) for path in masks.values() if path not in named.values()]
        raise DataError(f"There is another mask for the image of {shorten(twice)}. Keep one mask for each image.")
    return named


def defects_below(defective: Path) -> dict[str, dict[str, Path]]:
    """List the images by type of defect; without subfolders there is one type, ``defect``.

    Raises:
        DataError: If there are none, two would get one name, or it is unclear of which type an image is.
    """
    images = _found(defective)
    loose = [image.name for image in images if len(image.parts) == 1]
    kinds = sorted({image.parts[0] for image in images if len(image.parts) > 1})
    if kinds and loose:
        raise DataError(f"{defective} holds both folders and images ({shorten(loose)}). Put these into a folder too.")
    if any(kind.lower() == "good" for kind in kinds):
        raise DataError(f"{defective / 'good'} cannot be a type of defect. Move its images to the good ones.")
    if not kinds:
        return {"defect": _by_flat_name(defective, images)}
    return {kind: _by_flat_name(defective / kind, _inside(kind, images)) for kind in kinds}


def masks_by_kind(masks: Path, kinds: Sequence[str]) -> dict[str, dict[str, Path]]:
    """List the masks of each type of defect by their names in the layout; a type may have none.

    Raises:
        DataError: If there are none, two are for one image, a folder is of no type of defect, or a mask does not say
            clearly what is defective.
    """
    found = _found(masks)
    folders = sorted({mask.parts[0] for mask in found if len(mask.parts) > 1})
    loose = [mask for mask in found if len(mask.parts) == 1]
    if len(kinds) == 1 and not folders:
        flat = {kinds[0]: _by_flat_name(masks, found)}
    elif loose or not set(folders) <= set(kinds):
        strange = sorted({*(mask.name for mask in loose), *folders} - set(kinds))
        raise DataError(f"{masks} holds {shorten(strange)}; expected folders named {', '.join(kinds)}.")
    else:
        flat = {kind: _by_flat_name(masks / kind, _inside(kind, found)) for kind in folders}
    named = {kind: _by_layout_name(files) for kind, files in flat.items()}
    refuse_unclear_masks([path for files in named.values() for path in files.values()])
    return named


def _inside(folder: str, paths: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """Return the paths below a folder, relative to it."""
    return [path.relative_to(folder) for path in paths if path.parts[0] == folder]
