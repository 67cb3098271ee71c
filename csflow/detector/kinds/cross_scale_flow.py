"""CS-Flow: the likelihood of the feature pyramid under a cross-scale flow.

Reference:
    Rudolph et al., "Fully convolutional cross-scale-flows for image-based defect detection", WACV 2022.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from csflow.config import LineConfig, ScoringConfig
from csflow.detector.fitting import Fitting, ShapedFeatures
from csflow.detector.model import Model
from csflow.detector.model_file import flow_state
from csflow.detector.scoring import scored
from csflow.features.entries import Shape
from csflow.flow.cross_scale import CrossScaleFlow
from csflow.flow.pyramid import Pyramid
from csflow.flow.training import fit_flow


class FlowModel(Model):
    """CS-Flow: score and map are sums over the latents of a cross-scale flow."""

    def __init__(self, flow: CrossScaleFlow, scoring: ScoringConfig) -> None:
        super().__init__()
        self.flow = flow
        self.scoring = scoring

    def forward(self, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """See :meth:`csflow.detector.model.Model.forward`."""
        latents, log_det = self.flow(pyramid)
        return scored(latents, log_det, self.scoring)


def fit(line: LineConfig, features: ShapedFeatures, fitting: Fitting) -> Model:
    """See :meth:`csflow.detector.fitting.Implementation.fit`."""
    flow = fit_flow(
        features,
        line.flow,
        line.training,
        channels=features.shapes[0][0],
        scales=len(features.shapes),
        directory=fitting.directory,
        on_epoch=fitting.on_epoch,
        group=fitting.group,
        held_out=fitting.held_out,
    )
    return FlowModel(flow, line.scoring)


def restore(line: LineConfig, shapes: tuple[Shape, ...], state: Mapping[str, Tensor]) -> Model:
    """See :meth:`csflow.detector.fitting.Implementation.restore`."""
    flow = CrossScaleFlow(line.flow, channels=shapes[0][0], scales=len(shapes))
    model = FlowModel(flow, line.scoring)
    model.load_state_dict(flow_state(state))
    return model
