"""Scores of a real line's good images: those its detector never fitted, those it did, and those of unknown lighting."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from threshold_breaks import Break, measured
from threshold_study import Split, calibrated

from csflow.config import CalibrationConfig, LineConfig, load_line
from csflow.detector.fitting import load_model
from csflow.detector.model import Model, round_to_stored, score_stored
from csflow.errors import DataError
from csflow.features.backbone import load_backbone
from csflow.features.cache_manifest import CachedFeatures, CacheManifest
from csflow.features.store import FeatureStore
from csflow.runs.checkout import materialise
from csflow.runs.find_or_fit import find_or_fit
from csflow.runs.fitting import images_to_fit
from csflow.system.workspace import Workspace

Floats = npt.NDArray[np.float64]


class OneShot(NamedTuple):
    """The line as it is: its own calibration images, judged on its own good test images. No draw at all.

    Attributes:
        source: Line and detector.
        alpha: Rate asked for.
        n: Calibration images.
        images: Good test images.
        false_alarms: How many of them are called defective.
        p_surprise: Probability of at least so many, if they come from the same process.
        p_same: Two-sample Kolmogorov-Smirnov test, exact: p-values of one calibration depend on one another.
    """

    source: str
    alpha: float
    n: int
    images: int
    false_alarms: int
    p_surprise: float
    p_same: float


class Line(NamedTuple):
    """A line's good images and their features.

    Attributes:
        config: The line.
        frame: Rows of the manifest, good images only.
        cached: Features of at least these images.
        workspace: Keeps the models.
    """

    config: LineConfig
    frame: pd.DataFrame
    cached: CacheManifest
    workspace: Workspace

    @classmethod
    def load(cls, name: str) -> Line:
        """Check out a line's images and make sure of their features."""
        config, workspace = load_line(name), Workspace.from_environment()
        manifest, _ = materialise(config, workspace)
        good = manifest.rows(label="good")
        cached = FeatureStore(workspace.features).extract(good, config.features, load_backbone(config.features))
        return cls(config, good.frame, cached, workspace)

    def with_detector(self, kind: str) -> Line:
        """The line with another kind of detector."""
        return self._replace(config=self.config.model_copy(update={"detector": kind}))

    def features(self, chosen: pd.Series[bool]) -> CachedFeatures:
        """Features of some rows."""
        return self.cached.open(list(self.frame.loc[chosen, "sha256"]))

    def in_role(self, *roles: str) -> pd.Series[bool]:
        """Rows with one of the roles."""
        return self.frame["role"].isin(roles)

    def fitted(self, chosen: pd.Series[bool]) -> Model:
        """The line's detector, if need be another kind, fitted to some rows and rounded as it would be stored."""
        images = images_to_fit(self.config, list(self.frame.loc[chosen, "sha256"]))
        folder = find_or_fit(self.config, self.cached, images, self.workspace.models)
        model = load_model(folder / "model.safetensors", self.config, self.cached.shapes)
        round_to_stored(model)
        return model

    def scores(self, model: Model, chosen: pd.Series[bool]) -> Floats:
        """Scores of some rows in float64."""
        return score_stored(model, self.features(chosen))[0].astype(np.float64)


def pool(name: str, line: Line, model: Model) -> Split:
    """All good images that were not fitted. Nothing is chosen here, so the good test images may be among them."""
    return Split(name, line.scores(model, line.in_role("calibrate", "gate", "test")))


def one_shot(name: str, line: Line, model: Model, alpha: float) -> OneShot:
    """Calibrate on the images held out for it, judge the good test images, once."""
    held_out = line.scores(model, line.in_role("calibrate"))
    new = line.scores(model, line.in_role("test"))
    calibration = calibrated(held_out, CalibrationConfig(alpha=alpha))
    false_alarms = sum(calibration.decide(score) == "defective" for score in new.tolist())
    surprise = calibration.surprise(false_alarms, len(new))
    same = float(stats.ks_2samp(held_out, new, method="exact").pvalue)
    return OneShot(name, alpha, len(held_out), len(new), false_alarms, float(surprise or 0.0), same)


def fitted_images(name: str, line: Line, model: Model, rule: CalibrationConfig) -> list[Break]:
    """Calibration on images that were fitted, beside that on images that were not."""
    new = line.scores(model, line.in_role("gate", "test"))
    roles = (("images that were not fitted", "calibrate", False), ("images that were fitted", "fit", True))
    return [
        measured(name, f"calibrated on {text}", rule, [(line.scores(model, line.in_role(role)), new)], broken=broken)
        for text, role, broken in roles
    ]


def unknown_lighting(line: Line, pattern: str, rule: CalibrationConfig, *, least: int = 20) -> list[Break]:
    """For each condition a file name tells: fit and calibrate on the others only, judge good images of this one.

    Args:
        line: The line.
        pattern: Regular expression with one group, searched in the paths.
        rule: The promise.
        least: Conditions with fewer good images are left out.

    Raises:
        DataError: If the pattern tells no two conditions apart.
    """
    condition = line.frame["path"].map(lambda path: (re.findall(pattern, path) or [""])[0])
    counts = condition.value_counts().sort_index()
    names = [name for name, count in counts.items() if name and count >= least]
    if len(names) < 2:
        raise DataError(f"{pattern!r} finds {dict(counts)} in the paths; expected two conditions of {least} images.")
    breaks = []
    for name in names:
        other = condition != name
        model = line.fitted(other & line.in_role("fit"))
        held_out = line.scores(model, other & line.in_role("calibrate", "gate"))
        new = line.scores(model, ~other)
        breaks.append(measured(line.config.line, f"lighting {name} never seen", rule, [(held_out, new)], broken=True))
    return breaks
