"""Select held-out good images, and make copies of them with synthetic defects."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.errors import DamagedFileError
from csflow.system.code_identity import code_version
from csflow.system.files import new_directory, sha256_file, sha256_json
from csflow.system.seals import put_aside, read_sealed_json, write_sealed_json

if TYPE_CHECKING:
    from csflow.data.manifest import Manifest

MOST_HELD_OUT = 256
"""Most held-out images that get a synthetic defect: enough to rank detectors, and cheap."""

SUMS = "checksums.json"
"""File in a set of pasted images with the SHA-256 of each."""

PASTE_SEED = 0
"""Seed of the synthetic defects: the same for every variant."""


def held_out(manifest: Manifest, fitted: Collection[str]) -> Manifest | None:
    """Select good images with the roles *calibrate* and *gate* that were not fitted.

    Args:
        manifest: The line's images.
        fitted: SHA-256 of the images fitted.

    Returns:
        At most ``MOST_HELD_OUT`` images, sorted by SHA-256 and each once; None if there are none.
    """
    candidates = manifest.frame[manifest.frame["role"].isin(["calibrate", "gate"])]
    chosen = candidates[~candidates["sha256"].isin(list(fitted))].sort_values("sha256").drop_duplicates("sha256")
    if not len(chosen):
        return None
    return type(manifest)(chosen.head(MOST_HELD_OUT).reset_index(drop=True), manifest.root)


def paste_on(good: Manifest, root: Path, bit_depth: int | None = None) -> Manifest:
    """Paste a synthetic defect on every image, unless an earlier call did and its images are sound.

    Args:
        good: The images.
        root: Folder of all sets of pasted images; each set has a subfolder.
        bit_depth: Bits that the camera fills in 16-bit samples.

    Returns:
        The pasted images, in the order of ``good``.

    Raises:
        DataError: If an image cannot be read or is too small for a defect.
    """
    code = code_version("csflow.synthetic.paste", "csflow.data.images")
    folder = root / sha256_json([list(good.frame["sha256"]), PASTE_SEED, bit_depth, code])[:32]
    sums = _sums(folder)
    if sums is None:
        from csflow.data.images import read_image
        from csflow.synthetic.paste import paste_defects

        pasted, _ = paste_defects([read_image(file, bit_depth) for file in good.files], PASTE_SEED)
        with new_directory(folder) as target:
            for sha, picture in zip(good.frame["sha256"], pasted, strict=True):
                picture.save(target / f"{sha}.png")
            sums = {file.name: sha256_file(file) for file in sorted(target.iterdir())}
            write_sealed_json(target / SUMS, {"sha256": sums})
    frame = good.frame[["path", "sha256"]].assign(path=[f"{sha}.png" for sha in good.frame["sha256"]])
    frame["sha256"] = [sums[name] for name in frame["path"]]
    return type(good)(frame, folder)


def _sums(folder: Path) -> dict[str, str] | None:
    """Return the SHA-256 of every image of a set by its name; ``None`` if there is no set, or a damaged one."""
    if not folder.exists():
        return None
    try:
        sums: dict[str, str] = read_sealed_json(folder / SUMS)["sha256"]
        broken = [
            name for name, sha in sums.items() if not (folder / name).is_file() or sha256_file(folder / name) != sha
        ]
        if broken:
            raise DamagedFileError(f"{folder} is damaged: {len(broken)} of {len(sums)} images, {broken[0]} the first.")
    except DamagedFileError as error:
        put_aside(folder, str(error))
        return None
    return sums
