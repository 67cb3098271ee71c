"""Simulate lines whose calibration images are not like the later parts, which breaks the threshold's promise.

A part is a vector of independent normal features of unequal spread, and an image of it is the part with a little noise.
Roles come from csflow's own rule and scores from its own Mahalanobis detector. Each broken case is paired with a sound
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from threshold_study import Family, calibrated

from csflow.config import CalibrationConfig, RolesConfig
from csflow.data.manifest import role_of
from csflow.detector.kinds.mahalanobis import Mahalanobis
from csflow.detector.model import score_stored
from csflow.flow.pyramid import Pyramid

Floats = npt.NDArray[np.float64]

FEATURES, PICTURES, FRESH = 96, 600, 300
"""Numbers of features per image, good images to learn from, and new parts to judge, of a simulated line."""

SPREADS = np.logspace(0.0, -1.5, FEATURES)
"""Standard deviations of the features. They are unequal, because shrinkage would estimate equal ones exactly."""

NOISE = 0.1
"""Standard deviation of an image's features around those of its part, as a share of the feature's."""

DRIFT = 0.5
"""Shift of every fourth feature by the drift in lighting, as a share of the feature's standard deviation."""


class Break(NamedTuple):
    """A way of calibrating, and how well its promise was kept. Rates are fractions.

    Attributes:
        source: The line.
        case: Description of the calibration.
        broken: True if it breaks the assumption; False for the sound case that it is compared with.
        alpha: Promised rate.
        confidence: Of the tolerance rule; None for the conformal one.
        n: Calibration images, on average over the draws.
        images: Good images judged, all draws together.
        draws: Number of draws.
        observed_rate: Mean false-alarm rate.
        observed_kept: Share of draws whose true rate is at most alpha; None where nobody knows the true rate.
        p_surprise: Of a single draw: probability of so many false alarms or more if the assumption held; else None.
    """

    source: str
    case: str
    broken: bool
    alpha: float
    confidence: float | None
    n: float
    images: int
    draws: int
    observed_rate: float
    observed_kept: float | None = None
    p_surprise: float | None = None


class Vectors:
    """Feature vectors as csflow's detectors read them: one level of one pixel."""

    def __init__(self, values: Floats) -> None:
        self.values = torch.from_numpy(values.astype(np.float32))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.values)

    def batch(self, indices: Sequence[int]) -> Pyramid:
        """Return one level ``(B, C, 1, 1)``."""
        return [self.values[list(indices), :, None, None]]


def measured(
    source: str, case: str, rule: CalibrationConfig, draws: Iterable[tuple[Floats, Floats]], *, broken: bool
) -> Break:
    """Calibrate on the first scores of each draw and judge the second."""
    sizes, alarms, images = [], 0, 0
    for held_out, new in draws:
        calibration = calibrated(held_out, rule)
        alarms += sum(calibration.decide(score) == "defective" for score in new.tolist())
        sizes.append(len(held_out))
        images += len(new)
    mean, rate = float(np.mean(sizes)), alarms / images
    surprise = calibration.surprise(alarms, images) if len(sizes) == 1 else None
    return Break(source, case, broken, rule.alpha, rule.confidence, mean, images, len(sizes), rate, p_surprise=surprise)


def simulated_breaks(rule: CalibrationConfig, *, draws: int, seed: int) -> list[Break]:
    """Run all cases on a simulated line; the detector is fitted again in every draw."""
    cases: tuple[tuple[str, Scenario], ...] = (
        ("one picture a part", Scenario()),
        ("4 pictures a part, with group, one of each counted", Scenario(4, grouped=True, counted=1)),
        ("4 pictures a part, with group, all counted", Scenario(4, grouped=True, broken=True)),
        ("4 pictures a part, without group", Scenario(4, broken=True)),
        ("drift in lighting after calibration", Scenario(drift=DRIFT, broken=True)),
        ("calibrated on images that were fitted", Scenario(calibrate_on="fit", broken=True)),
    )
    return [
        measured("simulated", name, rule, (_one_draw(case, [seed, draw]) for draw in range(draws)), broken=case.broken)
        for name, case in cases
    ]


class Scenario(NamedTuple):
    """A way of photographing and calibrating a simulated line.

    Attributes:
        pictures_a_part: Images of the same part, which are near-duplicates.
        grouped: True if ``group`` keeps them in one role.
        counted: Images of a part at most that count as calibration images.
        drift: Shift of the new parts' lighting.
        calibrate_on: Role of the calibration images.
        broken: True if this breaks the assumption.
    """

    pictures_a_part: int = 1
    grouped: bool = False
    counted: int = PICTURES
    drift: float = 0.0
    calibrate_on: str = "calibrate"
    broken: bool = False


def _one_draw(case: Scenario, seed: Sequence[int]) -> tuple[Floats, Floats]:
    """Return the scores of the calibration images and of images of new parts."""
    generator = np.random.default_rng(seed)
    pictures = np.repeat(
        generator.normal(size=(PICTURES // case.pictures_a_part, FEATURES)), case.pictures_a_part, axis=0
    )
    pictures += NOISE * generator.normal(size=pictures.shape)
    roles = np.array([_role(case, seed, picture) for picture in range(PICTURES)])
    new = generator.normal(size=(FRESH, FEATURES)) + NOISE * generator.normal(size=(FRESH, FEATURES))
    new[:, ::4] += case.drift
    model = Mahalanobis.fit(Vectors(SPREADS * pictures[roles == "fit"])).eval()
    of_part = np.arange(PICTURES) % case.pictures_a_part
    chosen = pictures[(roles == case.calibrate_on) & (of_part < case.counted)]
    held_out, fresh = (score_stored(model, Vectors(SPREADS * values))[0].astype(np.float64) for values in (chosen, new))
    return held_out, fresh


def _role(case: Scenario, seed: Sequence[int], picture: int) -> str:
    """Return the role that csflow gives: by the group, or by the content, which differs from image to image."""
    key = f"part {picture // case.pictures_a_part}" if case.grouped else f"picture {picture}"
    return role_of(f"{list(seed)} {key}", RolesConfig())


def counted_twice(rule: CalibrationConfig, *, n: int, pictures_a_part: int, draws: int, seed: int) -> Break:
    """Calibrate on several images of each part, all counted: fewer draws than promised keep the promise.

    Args:
        rule: The promise, with a confidence.
        n: Calibration images.
        pictures_a_part: Number of images of the same part.
        draws: Number of draws.
        seed: Seed of the generator.
    """
    spread = float(np.hypot(1.0, NOISE))

    def sample(generator: np.random.Generator, size: int) -> Floats:
        parts = np.repeat(generator.normal(size=-(-size // pictures_a_part)), pictures_a_part)[:size]
        return np.asarray(parts + NOISE * generator.normal(size=size))

    family = Family("simulated", sample, lambda score: float(stats.norm.sf(score / spread)))
    generator, rates = np.random.default_rng(seed), []
    for _ in range(draws):
        calibration = calibrated(family.draw(generator, n, 0)[0], rule)
        rates.append(family.rate_above(float(calibration.threshold or 0.0)))
    return Break(
        source="simulated",
        case=f"{pictures_a_part} pictures a part in calibration" if pictures_a_part > 1 else "one picture a part",
        broken=pictures_a_part > 1,
        alpha=rule.alpha,
        confidence=rule.confidence,
        n=n,
        images=0,
        draws=draws,
        observed_rate=float(np.mean(rates)),
        observed_kept=float((np.array(rates) <= rule.alpha).mean()),
    )
