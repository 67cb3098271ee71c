"""The benchmark's own idea of what is right: equal to the flow, and to the authors' names and counts."""

import torch
from sidebyside.plain import plain_flow, plain_loss, plain_scores, training_flops
from sidebyside.weights import to_anomalib, to_official

from csflow.config import FlowConfig
from csflow.detector.scoring import anomaly_score
from csflow.flow.cross_scale import CrossScaleFlow
from csflow.flow.official_weights import from_official
from csflow.flow.pyramid import Pyramid


def flow_and_features() -> tuple[CrossScaleFlow, Pyramid]:
    torch.manual_seed(0)
    flow = CrossScaleFlow(FlowConfig(blocks=2, hidden=8, standardize=False), channels=7, scales=3).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return flow, [torch.randn(2, 7, 8 >> i, 8 >> i, dtype=torch.float64) for i in range(3)]


def test_the_plain_form_is_the_flow() -> None:
    flow, features = flow_and_features()
    expected, expected_log_det = flow(features)
    latents, log_det = plain_flow(flow.state_dict(), features)
    for ours, theirs in zip(latents, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(log_det, expected_log_det)
    torch.testing.assert_close(plain_scores(latents).float(), anomaly_score(expected))
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    per_dimension = flow.per_dimension(flow.nll(features), features).mean()
    torch.testing.assert_close(plain_loss(latents, log_det) + constant, per_dimension)


def test_the_authors_get_the_same_weights() -> None:
    flow, features = flow_and_features()
    state = {name: tensor.float() for name, tensor in flow.state_dict().items()}
    back = from_official(to_official(state)).double()
    torch.testing.assert_close(back(features)[0][0], flow(features)[0][0], rtol=1e-5, atol=1e-5)


def test_anomalib_gets_every_weight_once() -> None:
    flow, _ = flow_and_features()
    renamed = to_anomalib(flow.state_dict())
    assert sum(tensor.numel() for tensor in renamed.values()) == sum(p.numel() for p in flow.parameters())
    assert "graph.module_list.3.cross_convolution2.up_conv21.weight" in renamed


def test_arithmetic_is_that_of_the_convolutions() -> None:
    flow, features = flow_and_features()
    channels = {"1": (3, 2 * 4), "2": (4, 2 * 3)}  # what each half reads and gives
    places = [level[0, 0].numel() for level in features]
    forward = first = 0
    for kernel in (3, 5):
        for reads, gives in channels.values():
            first_half = kernel == 3 and reads == 4
            inner = [2 * kernel**2 * reads * 8 * p for p in places]
            outer = [2 * kernel**2 * 8 * gives * p for p in (*places, *places[:-1], *places[1:])]
            forward += sum(inner) + sum(outer)
            # The very first network reads the features, which need no gradient.
            first += sum(inner) if first_half else 0
    batch = len(features[0])
    shapes = [tuple(level.shape) for level in features]
    assert training_flops(flow.state_dict(), shapes) == batch * (3 * forward - first)
