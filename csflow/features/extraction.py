"""Compute the features of image files: on a CPU one image per core in ONNX Runtime, elsewhere in batches in torch."""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csflow.config import FeatureConfig
from csflow.data.images import decode_image, normalisation, to_pyramid_levels
from csflow.errors import CacheError, CsflowError, DamagedFileError, DataError, ModelError
from csflow.features.backbone import Backbone
from csflow.features.entries import Half
from csflow.system.cores import cores
from csflow.system.files import write_atomic
from csflow.system.onnx_session import open_session
from csflow.system.seals import check, put_aside

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
Levels: TypeAlias = list[NDArray[np.uint8]]
"""An image sized for every scale, ``(s, s, 3)``, finest first."""

AGREEMENT = 1e-4
"""Largest relative difference (Euclidean norm) between the graph's features and torch's, before they are rounded
to half precision."""

TRUNK = "trunk.onnx"
"""Name of the trunk's graph in the folder of a feature space."""


def extract_features(
    files: Mapping[str, Path], features: FeatureConfig, backbone: Backbone, batch_size: int, folder: Path
) -> Iterator[tuple[str, Half]]:
    """Compute the features of image files, in the order of the files.

    Args:
        files: Path of each image by the SHA-256 that its content must have.
        features: Image size, scales and way of downscaling.
        backbone: Computes the features on its own device.
        batch_size: Number of images computed at once on another device than the CPU; on the CPU it is one a core.
        folder: Folder that keeps the trunk's graph for the next call.

    Yields:
        The image's SHA-256 and its values ``(values,)`` as float16: the scales flattened, finest first.

    Raises:
        DataError: If a file is missing, damaged or of another content.
        CacheError: If the trunk's graph cannot be written.
        ModelError: If a value is not finite or exceeds the range of half precision, or the trunk's graph disagrees with
            the trunk.
    """
    if not files:
        return
    graph = None
    if _device_of(backbone).type == "cpu":
        first = _levels_of(next(iter(files.items())), features)
        graph = _checked_graph(folder / TRUNK, backbone, features, first)
    computed = _in_batches(files, features, backbone, batch_size) if graph is None else _by_core(files, features, graph)
    for sha, values in zip(files, computed, strict=True):
        yield sha, _as_half(values, files[sha])


def _as_half(values: NDArray[np.float32], file: Path) -> Half:
    """Round features to half precision.

    Raises:
        ModelError: If they are NaN, infinite or too large.
    """
    with np.errstate(over="ignore"):  # infinite then, and refused
        half = values.astype(np.float16)
    if np.isfinite(half).all():
        return half
    for what, wrong in (("NaN", np.isnan(values)), ("infinite", np.isinf(values))):
        if wrong.any():
            raise ModelError(
                f"{np.count_nonzero(wrong)} of {values.size} features of {file} are {what}, although all weights of "
                "the backbone are finite: values inside of it became too large. Use another backbone or stage, or "
                "other weights."
            )
    raise ModelError(
        f"Features of {file} exceed half precision: {np.abs(values).max():.3g}, at most {np.finfo(np.float16).max:.6g} "
        "can be stored. Use another backbone or stage."
    )


def _by_core(
    files: Mapping[str, Path], features: FeatureConfig, graph: InferenceSession
) -> Iterator[NDArray[np.float32]]:
    """Read, size and compute one image on every core."""

    def work(item: tuple[str, Path]) -> NDArray[np.float32]:
        return _run(graph, _levels_of(item, features))

    return _map_ahead(work, files.items(), ahead=2 * cores())


def _in_batches(
    files: Mapping[str, Path], features: FeatureConfig, backbone: Backbone, batch_size: int
) -> Iterator[NDArray[np.float32]]:
    """Compute a batch on the device while threads read the next."""
    levels = _map_ahead(lambda item: _levels_of(item, features), files.items(), ahead=2 * batch_size)
    while batch := list(islice(levels, batch_size)):
        yield from _forward(backbone, [np.stack(level) for level in zip(*batch, strict=True)])


def _checked_graph(path: Path, backbone: Backbone, features: FeatureConfig, probe: Levels) -> InferenceSession | None:
    """Open the trunk's graph; write a new one if there is none or it does not compute what the trunk computes.

    Returns:
        The graph, to be run by one core; ``None`` if the trunk cannot be turned into a graph.

    Raises:
        ModelError: If even a new graph disagrees.
    """
    expected = _forward(backbone, [np.stack([level]) for level in probe])[0]
    kept = _kept_graph(path, probe, expected)
    if kept is not None:
        return kept
    try:
        session = _new_graph(path, backbone, features)
        found = _run(session, probe)
    except ModelError as error:
        warnings.warn(f"Features are computed in torch, which takes longer: {error}", stacklevel=2)
        return None
    if not (distance := _distance(expected, found)) <= AGREEMENT:
        raise ModelError(
            f"The graph of {backbone.name} computes features that differ by {distance:.2g} from the trunk's own "
            f"(relative, at most {AGREEMENT:g} is allowed). Use another backbone or stage."
        )
    return session


def _new_graph(path: Path, backbone: Backbone, features: FeatureConfig) -> InferenceSession:
    from csflow.features.trunk_graph import sealed_bytes, trunk_graph

    content = sealed_bytes(trunk_graph(backbone, features))
    try:
        write_atomic(path, content)
    except CsflowError as error:
        raise CacheError(str(error)) from error
    return open_session(path, threads=1)


def _kept_graph(path: Path, probe: Levels, expected: NDArray[np.float32]) -> InferenceSession | None:
    """Open the graph of an earlier call; ``None`` if it is missing, damaged or another trunk's.

    A changed bit of a weight may alter features by less than :data:`AGREEMENT`, so the seal is compared as well.
    """
    if not path.exists():
        return None
    try:
        check(path)
    except DamagedFileError as error:
        put_aside(path, str(error))
        return None
    try:
        session = open_session(path, threads=1)
        found = _run(session, probe)
    except Exception:  # an older ONNX Runtime may not open it; a new one is written
        return None
    return session if found.shape == expected.shape and _distance(expected, found) <= AGREEMENT else None


def _distance(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    if not np.isfinite(expected).all():
        return 0.0  # the trunk itself is wrong, which is reported when its features are stored
    return float(np.linalg.norm(found - expected) / (np.linalg.norm(expected) or 1.0))


def _run(graph: InferenceSession, levels: Levels) -> NDArray[np.float32]:
    """Run the graph on one image and return its ``(values,)``."""
    feeds = {value.name: level[None] for value, level in zip(graph.get_inputs(), levels, strict=False)}
    (values,) = graph.run(["features"], feeds)
    row: NDArray[np.float32] = values[0]
    return row


@torch.inference_mode()
def _forward(backbone: Backbone, levels: Levels) -> NDArray[np.float32]:
    """Compute ``(B, values)`` of levels ``(B, s, s, 3)``: the scales of each image flattened, finest first."""
    device = _device_of(backbone)
    factor, offset = (torch.from_numpy(values).to(device) for values in normalisation(backbone.mean, backbone.std))
    pixels = [torch.from_numpy(level).to(device).float() for level in levels]
    pyramid: list[Tensor] = backbone([(level * factor - offset).permute(0, 3, 1, 2) for level in pixels])
    return torch.cat([level.flatten(1) for level in pyramid], dim=1).cpu().numpy()


def _device_of(backbone: Backbone) -> torch.device:
    return next(backbone.parameters()).device


def _levels_of(item: tuple[str, Path], features: FeatureConfig) -> Levels:
    """Read an image file, check it and size it for every scale."""
    sha, path = item
    image = decode_image(_checked_bytes(path, sha), name=str(path), bit_depth=features.bit_depth)
    return to_pyramid_levels(image, features)


def _checked_bytes(path: Path, sha: str) -> bytes:
    """Read an image file whose content must have the SHA-256 of the manifest."""
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


def _map_ahead(work: Callable[[_Item], _Result], items: Iterable[_Item], *, ahead: int) -> Iterator[_Result]:
    """Map in threads, at most ``ahead`` results in front of the reader, so that memory stays bounded."""
    executor = ThreadPoolExecutor(max_workers=cores())
    waiting: deque[Future[_Result]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
