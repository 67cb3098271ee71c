r"""Comparison detectors on frozen features: what a flow has to beat, and where a line may do without one.

All of them measure a distance to the features of good images. 1-NN and Mahalanobis look at an image's features averaged
over all places (as the paper evaluated them); PaDiM and PatchCore look at every place, with all levels enlarged to the
finest and joined.

Reference:
    1-NN: Nazare et al., 2018. Mahalanobis: Rippel et al., ICPR 2020. PaDiM: Defard et al., ICPR 2020 workshops.
    PatchCore: Roth et al., CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csflow.config import PadimConfig, PatchcoreConfig
from csflow.detector.model import Model, pooled
from csflow.errors import DataError
from csflow.flow.cross_scale import Pyramid, joined
from csflow.flow.device import Features
from csflow.system.progress import track

SMOOTHING, REACH = 4.0, 16
"""Standard deviation and half width of the Gaussian over enlarged maps in pixels of the input, as the authors of PaDiM
and PatchCore use it."""

CANDIDATES = 200_000
"""Most patches PatchCore thins out; of more, so many are drawn. Every patch kept is compared with all of them."""

BLOCK = 512
"""Vectors of the memory compared at once: the table of distances to all of them would not fit into memory."""

PROJECTED = 128
"""Dimensions in which PatchCore compares patches while thinning them out (the authors' default)."""


class _Distance(Model):
    """A model whose file holds its constructor's tensors: large ones as parameters, which are stored in half."""

    def _keep(self, *, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> None:
        for name, tensor in parameters.items():
            setattr(self, name, nn.Parameter(tensor.float(), requires_grad=False))
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor.float() if tensor.is_floating_point() else tensor.long())


class NearestNeighbour(_Distance):
    """Distance of the pooled features to those of the nearest good image.

    The map is the same distance of every place's features; it only hints, for the neighbours are averages.

    Args:
        memory: Pooled features of the good images less ``centre``, ``(n, D)``.
        centre: Their mean, ``(D,)``: distances between small numbers lose fewer digits.
    """

    memory: Tensor
    centre: Tensor

    def __init__(self, memory: Tensor, centre: Tensor) -> None:
        super().__init__()
        self._keep(parameters={"memory": memory}, buffers={"centre": centre})

    def forward(self, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """See :meth:`csflow.detector.model.Model.forward`."""
        scores, _ = _nearest(pooled(pyramid) - self.centre, self.memory)
        places, shape = _places(joined(pyramid))
        distances, _ = _nearest(places - self.centre, self.memory)
        return scores, distances.reshape(shape)

    @classmethod
    def fit(cls, features: Features) -> NearestNeighbour:
        """Remember the pooled features of the good images."""
        vectors = _pooled_all(features)
        centre = vectors.mean(dim=0)
        return cls(vectors - centre, centre)


class Mahalanobis(_Distance):
    r"""Mahalanobis distance of the pooled features, the covariance shrunk as Ledoit and Wolf say.

    .. math:: s = \lVert W (y - \mu) \rVert, \quad W^\top W = \Sigma^{-1}

    The map is the same distance of every place's features; it only hints, for the distribution is that of averages.

    Args:
        mean: ``(D,)``.
        whitening: ``W``, ``(D, D)``.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, mean: Tensor, whitening: Tensor) -> None:
        super().__init__()
        self._keep(parameters={}, buffers={"mean": mean, "whitening": whitening})

    def forward(self, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """See :meth:`csflow.detector.model.Model.forward`."""
        places, shape = _places(joined(pyramid))
        return self._distance(pooled(pyramid)), self._distance(places).reshape(shape)

    def _distance(self, vectors: Tensor) -> Tensor:
        return ((vectors - self.mean) @ self.whitening.T).square().sum(dim=1).sqrt()

    @classmethod
    def fit(cls, features: Features) -> Mahalanobis:
        """Estimate mean and covariance.

        Raises:
            DataError: If there are too few different images.
        """
        from sklearn.covariance import LedoitWolf

        vectors = _pooled_all(features).double().numpy()
        if len(vectors) < 2:
            raise DataError(f"A covariance needs at least 2 good images, got {len(vectors)}. Add good images.")
        estimate = LedoitWolf().fit(vectors)
        try:
            whitening = np.linalg.inv(np.linalg.cholesky(estimate.covariance_))
        except np.linalg.LinAlgError as error:
            different = len(np.unique(vectors, axis=0))
            raise DataError(
                f"The covariance of {len(vectors)} good images, {different} of them different, has no inverse. "
                "Add good images that are not copies, or use detector nearest-neighbour."
            ) from error
        return cls(torch.from_numpy(estimate.location_), torch.from_numpy(whitening))


class Padim(_Distance):
    r"""Mahalanobis distance at every place to the good images' features at this very place.

    Parts must lie in the same place on every image. The score is the maximum of the map enlarged to the input and
    smoothed there; the map is that one at the size of the finest level.

    Args:
        channels: Channels kept of the joined levels, ``(d,)``.
        mean: Of every place, ``(h w, d, 1)``.
        whitening: Of every place, ``(h w, d, d)``; ``W^T W`` is the inverse covariance.
        pixels: Of the input's side, a scalar.
    """

    channels: Tensor
    mean: Tensor
    whitening: Tensor
    pixels: Tensor

    def __init__(self, channels: Tensor, mean: Tensor, whitening: Tensor, pixels: Tensor) -> None:
        super().__init__()
        self._keep(parameters={"whitening": whitening}, buffers={"channels": channels, "mean": mean, "pixels": pixels})
        self._pixels = int(pixels)

    def forward(self, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """See :meth:`csflow.detector.model.Model.forward`."""
        maps = joined(pyramid)[:, self.channels.long()]
        batch, _, height, width = maps.shape
        by_place = maps.flatten(2).permute(2, 1, 0) - self.mean  # (h w, d, B)
        distances = (self.whitening @ by_place).square().sum(dim=1).sqrt()
        fine = smooth(distances.T.reshape(batch, height, width), self._pixels)
        return fine.flatten(1).amax(dim=1), _at_size(fine, height, width)

    @classmethod
    def fit(cls, features: Features, config: PadimConfig, *, pixels: int, seed: int) -> Padim:
        """Estimate mean and covariance of every place.

        Args:
            features: Of the good images.
            config: Channels kept and regularisation.
            pixels: Of the input's side.
            seed: Draws the channels.

        Raises:
            DataError: If there are fewer than two images.
        """
        count = len(features)
        if count < 2:
            raise DataError(f"A covariance needs at least 2 good images, got {count}. Add good images.")
        total = joined(features.batch([0])).shape[1]
        kept = np.sort(np.random.default_rng(seed).permutation(total)[: config.dimensions])
        channels = torch.from_numpy(kept)

        def places(rows: range) -> Tensor:
            return joined(features.batch(rows))[:, channels].flatten(2).permute(2, 0, 1).double()  # (h w, B, d)

        mean = torch.stack([places(rows).sum(dim=1) for rows in _batches(count)]).sum(dim=0) / count
        scatter = torch.zeros(len(mean), len(channels), len(channels), dtype=torch.float64)
        for rows in _tracked(count, "estimate covariances"):
            centred = places(rows) - mean[:, None]
            scatter += centred.transpose(1, 2) @ centred
        covariance = scatter / (count - 1) + config.regularization * torch.eye(len(channels), dtype=torch.float64)
        whitening = torch.linalg.inv(torch.linalg.cholesky(covariance))
        return cls(channels, mean[:, :, None], whitening, torch.tensor(pixels))


class Patchcore(_Distance):
    r"""Distance of every patch to the nearest of a thinned-out set of good patches.

    A patch is the mean over a place and its eight neighbours. With ``p`` the patch farthest from its nearest kept patch
    ``m`` and ``N`` the ``neighbours`` kept patches nearest to ``m``, the score is

    .. math:: \left(1 - \frac{e^{\lVert p - m \rVert}}{\sum_{n \in N} e^{\lVert p - n \rVert}}\right)
              \lVert p - m \rVert

    which is larger where good patches are rare. The authors' code leaves this weight out (``neighbours: 1``).

    Args:
        memory: Patches kept less ``centre``, ``(M, D)``.
        centre: Mean of the good patches, ``(D,)``.
        pixels: Of the input's side, a scalar.
        neighbours: Patches that weigh the score, as a scalar; 1 for no weight.
    """

    memory: Tensor
    centre: Tensor
    pixels: Tensor
    neighbours: Tensor

    def __init__(self, memory: Tensor, centre: Tensor, pixels: Tensor, neighbours: Tensor) -> None:
        super().__init__()
        self._keep(
            parameters={"memory": memory}, buffers={"centre": centre, "pixels": pixels, "neighbours": neighbours}
        )
        self._pixels, self._weighing = int(pixels), int(neighbours)

    def forward(self, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """See :meth:`csflow.detector.model.Model.forward`."""
        patches, shape = _places(_patches(pyramid))
        patches = patches - self.centre
        distances, nearest = _nearest(patches, self.memory)
        by_image = distances.reshape(shape[0], -1)
        score, place = by_image.max(dim=1)
        if self._weighing > 1:
            farthest = torch.arange(shape[0], device=place.device) * by_image.shape[1] + place
            score = score * self._weight(patches[farthest], self.memory[nearest[farthest]])
        return score, _at_size(smooth(distances.reshape(shape), self._pixels), *shape[1:])

    def _weight(self, patches: Tensor, nearest: Tensor) -> Tensor:
        """Weight ``(B,)`` of patches ``(B, D)`` by the neighbourhood of their nearest kept patches."""
        around = _distances(nearest, self.memory).topk(self._weighing, dim=1, largest=False).indices
        reach = (patches[:, None] - self.memory[around]).square().sum(dim=2).sqrt()
        return 1 - torch.softmax(reach, dim=1)[:, 0]

    @classmethod
    def fit(cls, features: Features, config: PatchcoreConfig, *, pixels: int, seed: int) -> Patchcore:
        """Choose the patches to keep.

        Args:
            features: Of the good images.
            config: How many are kept.
            pixels: Of the input's side.
            seed: Draws candidates, projection and first patch.
        """
        rng = np.random.default_rng(seed)
        sample = _patches(features.batch([0]))
        places = sample[0, 0].numel()
        each = max(1, CANDIDATES // len(features))  # of every image alike
        parts = []
        for rows in _tracked(len(features), "gather patches"):
            for patches in _patches(features.batch(rows)).flatten(2).transpose(1, 2):
                chosen = rng.permutation(places)[:each] if each < places else np.arange(places)
                parts.append(patches[torch.from_numpy(chosen)])
        candidates = torch.cat(parts)
        centre = candidates.mean(dim=0)
        candidates -= centre
        keep = max(1, min(config.largest, round(config.coreset * len(features) * places), len(candidates)))
        memory = candidates[farthest_first(candidates, keep, rng)]
        neighbours = min(config.neighbours, keep)
        return cls(memory, centre, torch.tensor(pixels), torch.tensor(neighbours))


def farthest_first(points: Tensor, keep: int, rng: np.random.Generator) -> Tensor:
    """Positions of ``keep`` points, each the farthest from those before: the greedy coreset of PatchCore.

    Distances are those of a random projection to `PROJECTED` dimensions, if the points have more.

    Args:
        points: ``(n, D)``.
        keep: How many, at most ``n``.
        rng: Draws projection and first point.

    Reference:
        Roth et al., CVPR 2022, Algorithm 1; Sener and Savarese, ICLR 2018.
    """
    if points.shape[1] > PROJECTED:
        directions = rng.standard_normal((points.shape[1], PROJECTED)) / np.sqrt(PROJECTED)
        points = points @ torch.from_numpy(directions.astype(np.float32))
    squares = points.square().sum(dim=1)
    chosen = [int(rng.integers(len(points)))]
    gaps = torch.full((len(points),), torch.inf)
    for _ in track(range(keep - 1), total=keep - 1, label="thin out patches"):
        last = chosen[-1]
        gaps = torch.minimum(gaps, (squares + squares[last] - 2 * (points @ points[last])).clamp(min=0.0))
        gaps[last] = -1.0
        chosen.append(int(gaps.argmax()))
    return torch.tensor(chosen)


def smooth(maps: Tensor, pixels: int) -> Tensor:
    """Enlarge maps ``(B, h, w)`` bilinearly to ``(B, pixels, pixels)`` and convolve them with a Gaussian.

    The outermost values go on beyond the border; the authors mirror them there.

    Reference:
        Codes of Defard et al. and Roth et al.: ``gaussian_filter(enlarged, sigma=4)``, cut off at four deviations.
    """
    weights = np.exp(-0.5 * (np.arange(-REACH, REACH + 1) / SMOOTHING) ** 2)
    kernel = torch.from_numpy((weights / weights.sum()).astype(np.float32)).to(maps.device)
    fine = F.interpolate(maps[:, None], size=(pixels, pixels), mode="bilinear", align_corners=False)
    padded = F.pad(fine, (REACH, REACH, REACH, REACH), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[:, 0]


def _at_size(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps ``(B, H, W)`` at the places of a coarser grid, ``(B, height, width)``."""
    return F.interpolate(maps[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]


def _patches(pyramid: Pyramid) -> Tensor:
    """Every place averaged with its neighbours, levels joined, ``(B, D, h, w)``."""
    return joined([F.avg_pool2d(level, 3, stride=1, padding=1, count_include_pad=False) for level in pyramid])


def _places(maps: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Places of all images as vectors ``(B h w, D)``, and ``(B, h, w)``."""
    batch, channels, height, width = maps.shape
    return maps.permute(0, 2, 3, 1).reshape(-1, channels), (batch, height, width)


def _nearest(vectors: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Distance ``(n,)`` to the nearest row of ``memory``, and which it is; small distances are exact, too."""
    starts = range(0, len(memory), BLOCK)
    least, place = _least(vectors, memory[:BLOCK])
    for start in starts[1:]:
        found, where = _least(vectors, memory[start : start + BLOCK])
        place = torch.where(found < least, where + start, place)
        least = torch.minimum(found, least)
    return (vectors - memory[place]).square().sum(dim=1).sqrt(), place


def _least(vectors: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest squared distance ``(n,)`` less the vector's own square, and its row."""
    least, place = (memory.square().sum(dim=1) - 2 * vectors @ memory.T).min(dim=1)
    return least, place


def _distances(vectors: Tensor, memory: Tensor) -> Tensor:
    """Euclidean distances ``(n, M)``."""
    squares = vectors.square().sum(dim=1, keepdim=True) + memory.square().sum(dim=1) - 2 * vectors @ memory.T
    return squares.clamp(min=0.0).sqrt()


def _pooled_all(features: Features) -> Tensor:
    return torch.cat([pooled(features.batch(rows)) for rows in _batches(len(features))])


def _tracked(count: int, label: str) -> Iterator[range]:
    batches = _batches(count)
    return track(batches, total=len(batches), label=label)


def _batches(count: int, size: int = 32) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
