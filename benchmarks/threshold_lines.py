"""Score a real line's good images: those not fitted by its detector, those fitted, and those of unknown lighting."""

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
from csflow.detector.model import Model, score_stored
from csflow.detector.model_file import load_model, round_to_stored
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
    """The result of the line itself: its own calibration images and its own good test images, without any random draw.

    Attributes:
        source: Line and detector.
        alpha: Promised rate.
        n: Calibration images.
        images: Good test images.
        false_alarms: Number of them that are called defective.
        p_surprise: Probability of at least this number if they come from the same process.
        p_same: Exact two-sample Kolmogorov-Smirnov test, because p-values of one calibration are not independent.
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
        """Check out a line's images and extract their features if needed."""
        config, workspace = load_line(name), Workspace.from_environment()
        manifest, _ = materialise(config, workspace)
        good = manifest.rows(label="good")
        cached = FeatureStore(workspace.features).extract(good, config.features, load_backbone(config.features))
        return cls(config, good.frame, cached, workspace)

    def with_detector(self, kind: str) -> Line:
        """Return the line with another kind of detector."""
        return self._replace(config=self.config.model_copy(update={"detector": kind}))

    def features(self, chosen: pd.Series[bool]) -> CachedFeatures:
        """Return the features of some rows."""
        return self.cached.open(list(self.frame.loc[chosen, "sha256"]))

    def in_role(self, *roles: str) -> pd.Series[bool]:
        """Select the rows with one of the roles."""
        return self.frame["role"].isin(roles)

    def fitted(self, chosen: pd.Series[bool]) -> Model:
        """Fit the line's kind of detector to some rows, and round it as it would be stored."""
        images = images_to_fit(self.config, list(self.frame.loc[chosen, "sha256"]))
        folder = find_or_fit(self.config, self.cached, images, self.workspace.models)
        model = load_model(folder / "model.safetensors", self.config, self.cached.shapes)
        round_to_stored(model)
        return model

    def scores(self, model: Model, chosen: pd.Series[bool]) -> Floats:
        """Return the scores of some rows in float64."""
        return score_stored(model, self.features(chosen))[0].astype(np.float64)


def pool(name: str, line: Line, model: Model) -> Split:
    """Collect all good images that were not fitted, test images included, because nothing is chosen here."""
    return Split(name, line.scores(model, line.in_role("calibrate", "gate", "test")))


def one_shot(name: str, line: Line, model: Model, alpha: float) -> OneShot:
    """Calibrate once on the images held out for it, and judge the good test images."""
    held_out = line.scores(model, line.in_role("calibrate"))
    new = line.scores(model, line.in_role("test"))
    calibration = calibrated(held_out, CalibrationConfig(alpha=alpha))
    false_alarms = sum(calibration.decide(score) == "defective" for score in new.tolist())
    surprise = calibration.surprise(false_alarms, len(new))
    same = float(stats.ks_2samp(held_out, new, method="exact").pvalue)
    return OneShot(name, alpha, len(held_out), len(new), false_alarms, float(surprise or 0.0), same)


def fitted_images(name: str, line: Line, model: Model, rule: CalibrationConfig) -> list[Break]:
    """Compare a calibration on fitted images with one on images that were not fitted."""
    new = line.scores(model, line.in_role("gate", "test"))
    roles = (("images that were not fitted", "calibrate", False), ("images that were fitted", "fit", True))
    return [
        measured(name, f"calibrated on {text}", rule, [(line.scores(model, line.in_role(role)), new)], broken=broken)
        for text, role, broken in roles
    ]


def unknown_lighting(line: Line, pattern: str, rule: CalibrationConfig, *, least: int = 20) -> list[Break]:
    """Judge the good images of each lighting condition after fitting and calibrating on the other conditions only.

    Args:
        line: The line.
        pattern: Regular expression with one group, searched in the paths.
        rule: The promise.
        least: Conditions with fewer good images are left out.

    Raises:
        DataError: If the pattern does not distinguish two conditions.
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
