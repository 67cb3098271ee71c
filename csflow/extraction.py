"""Computing features: images decoded in threads while the backbone works on the ones before."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csflow.backbone import Backbone
from csflow.config import FeatureConfig
from csflow.errors import DataError, ModelError
from csflow.flow import Pyramid
from csflow.images import decode_image, to_pyramid_inputs

Half = NDArray[np.float16]
Item = TypeVar("Item")
Result = TypeVar("Result")


def extract_features(
    files: Mapping[str, Path], features: FeatureConfig, backbone: Backbone, batch_size: int
) -> Iterator[tuple[str, Half]]:
    """Compute the features of image files, in their order.

    Args:
        files: Path of each image by the SHA-256 its content must have.
        features: Image size, scales and way of downscaling.
        backbone: Computes the features, on the device it is on.
        batch_size: Images computed at once.

    Yields:
        The image's hash and its values as float16: the scales flattened, finest first, one after the other.

    Raises:
        DataError: If a file is missing, damaged or of another content.
        ModelError: If a value exceeds the range of half precision.
    """

    def decode(item: tuple[str, Path]) -> list[Tensor]:
        sha, path = item
        image = decode_image(_checked_bytes(path, sha), name=str(path))
        levels = to_pyramid_inputs(image, features, backbone.mean, backbone.std)
        return [torch.from_numpy(level) for level in levels]

    decoded = _map_ahead(decode, files.items(), ahead=2 * batch_size)
    names = list(files)
    for start in range(0, len(names), batch_size):
        shas = names[start : start + batch_size]
        images = [next(decoded) for _ in shas]
        values = _forward(backbone, [torch.stack(level) for level in zip(*images, strict=True)])
        for sha, row in zip(shas, values, strict=True):
            if not np.isfinite(row).all():
                raise ModelError(f"Features of {files[sha]} exceed half precision. Use another backbone or stage.")
            yield sha, row


@torch.inference_mode()
def _forward(backbone: Backbone, inputs: list[Tensor]) -> Half:
    """``(B, values)``: the scales of each image flattened, one after the other."""
    device = next(backbone.parameters()).device
    pyramid: Pyramid = backbone([level.to(device) for level in inputs])
    # A value beyond half precision becomes infinite here and is refused by the caller.
    return torch.cat([level.half().flatten(1) for level in pyramid], dim=1).cpu().numpy()


def _checked_bytes(path: Path, sha: str) -> bytes:
    """Read an image file whose content must be what the manifest says."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}. Run the ingest step again.") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha:
        raise DataError(
            f"{path} has changed since the manifest was made: expected SHA-256 {sha[:12]}…, got {found[:12]}…. "
            "Restore the file (dvc checkout) or run the ingest step again."
        )
    return content


def _map_ahead(work: Callable[[Item], Result], items: Iterable[Item], *, ahead: int) -> Iterator[Result]:
    """Like ``map``, in threads, at most ``ahead`` results in front of the reader: memory stays bounded."""
    executor = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
