"""What an ablation tries: every variant is a complete configuration, and nothing is changed on the side."""

from __future__ import annotations

from typing import Any

import pytest

from csflow.ablation.groups import variants
from csflow.ablation.request import GROUPS, Keys, Request, Variant, changed, differences, parse_overrides, parse_request
from csflow.config import KINDS, DataConfig, FeatureConfig, FlowConfig, LineConfig, RolesConfig
from csflow.errors import ConfigError

LINE = LineConfig(line="tiles", data=DataConfig(path="tiles"), flow=FlowConfig(hidden=32))
OTHER = LineConfig(line="plates", data=DataConfig(path="plates"), roles=RolesConfig(gate=0.3))
EVERYTHING: dict[str, Any] = {"backbones": ("tf_efficientnet_b0",), "image_sizes": (256,), "joined": (OTHER,)}


def planned(*groups: str, **wanted: Any) -> list[Variant]:
    return variants(Request(line=wanted.pop("line", LINE), groups=groups, **wanted))


def keys_of(found: list[Variant]) -> dict[str, Keys]:
    return {variant.name: differences(variant.line, LINE) for variant in found}


def test_table_3() -> None:
    found = planned("scales")
    assert keys_of(found) == {
        "single scale (384 px)": {"flow.scales": [0]},
        "single scale (192 px)": {"flow.scales": [1]},
        "single scale (96 px)": {"flow.scales": [2]},
        "separate multi-scale": {"flow.fusion": "separate"},
        "concatenated multi-scale": {"flow.fusion": "concatenated"},
        "CS-Flow": {},
    }
    assert [v.quoted.auroc for v in found if v.quoted] == [0.978, 0.968, 0.961, 0.982, 0.980, 0.987]
    assert all(v.quoted and "MVTec AD" in v.quoted.data for v in found)


def test_table_4() -> None:
    found = planned("blocks")
    assert [v.line.flow.blocks for v in found] == [1, 2, 3, 4, 5, 6]
    assert [v.quoted.auroc for v in found if v.quoted] == [0.946, 0.978, 0.985, 0.987, 0.987, 0.986]
    assert all(v.line.flow.kernels == (3,) * (v.line.flow.blocks - 1) + (5,) for v in found)


def test_a_lines_own_kernels_stay_where_they_fit() -> None:
    line = LINE.model_copy(update={"flow": FlowConfig(blocks=2, kernel_sizes=(1, 7))})
    kernels = {v.line.flow.blocks: v.line.flow.kernels for v in planned("blocks", line=line)}
    assert kernels[2] == (1, 7)
    assert kernels[3] == (3, 3, 5)


def test_every_group_changes_what_it_is_about_and_nothing_else() -> None:
    about = {
        "scales": {"flow.scales", "flow.fusion"},
        "blocks": {"flow.blocks"},
        "shots": {"roles.shots", "calibration"},
        "joint": {"roles.gate"},  # the other line's own
        "width": {"flow.hidden"},
        "standardization": {"flow.standardize"},
        "training": {"training.learning_rate", "training.schedule", "training.averaging"},
        "score": {"scoring.score"},
        "map": {"scoring.map"},
        "backbone": {"features.backbone", "features.weights"},
        "image-size": {"features.image_size"},
        "detectors": {"detector", "features.stages", "features.scales"},
    }
    assert set(about) == set(GROUPS)
    for variant in planned(*GROUPS, **EVERYTHING):
        changes = differences(variant.line, LINE)
        assert set(changes) <= about[variant.group], variant.name
        if variant.line.line == "tiles":
            assert changed(LINE, changes) == variant.line, "the keys printed make the variant"
    assert {v.group for v in planned(*GROUPS, **EVERYTHING)} == set(GROUPS)


def test_seeds_multiply_variants_but_not_those_in_which_nothing_is_drawn() -> None:
    found = planned("detectors", seeds=(3, 5))
    for kind in KINDS:
        seeds = {v.line.training.seed for v in found if v.line.detector == kind}
        assert seeds == ({3} if kind in ("nearest-neighbour", "mahalanobis") else {3, 5}), kind


def test_all_kinds_of_detector_read_features_they_can_read() -> None:
    odd = changed(LINE, {"detector": "differnet", "features.rotations": 4})
    found = planned("detectors", line=odd)
    assert {v.line.detector for v in found} == set(KINDS)
    assert all(v.line.features.rotations == (4 if v.line.detector == "differnet" else 1) for v in found)
    native = {v.line.detector: v.line.features.stages for v in found if "native" in v.name}
    assert native == {"padim": (2, 4, 5), "patchcore": (3, 5)}


def test_overrides_reach_every_variant_and_a_group_has_the_last_word() -> None:
    overrides = {"flow.hidden": 8, "training.epochs": 2}
    for variant in planned("scales", "width", "joint", overrides=overrides, joined=(OTHER,)):
        assert variant.line.training.epochs == 2
        assert (variant.line.flow.hidden == 8) == (variant.group != "width")


def test_lines_are_joined_with_the_first_ones_method_and_their_own_data() -> None:
    found = planned("joint", joined=(OTHER,))
    described = [(v.line.line, v.name, [line.line for line in v.joined]) for v in found]
    assert described == [
        ("tiles", "alone", []),
        ("tiles", "2 lines together", ["plates"]),
        ("plates", "alone", []),
        ("plates", "2 lines together", ["tiles"]),
    ]
    of_other = found[-1].line
    assert (of_other.data, of_other.roles, of_other.flow) == (OTHER.data, OTHER.roles, LINE.flow)
    assert found[1].line.training_digest() == of_other.training_digest(), "one model for both"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"groups": ("joint",)}, "--joint"),
        ({"groups": ("joint",), "joined": (LINE,)}, "each line once"),
        ({"groups": ("backbone",)}, "--backbone"),
        ({"groups": ("image-size",)}, "--image-size"),
        ({"groups": ("blocks",), "overrides": {"flow.hiden": 3}}, "Did you mean 'hidden'"),
        ({"groups": ("blocks",), "overrides": {"flow.hidden": "wide"}}, "flow.hidden"),
        ({"groups": ("blocks",), "overrides": {"calibration": "none", "calibration.alpha": 0.1}}, "as a whole"),
    ],
)
def test_what_cannot_be_planned_says_why(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        variants(Request(line=LINE, **wanted))


def test_lines_of_other_features_are_not_joined() -> None:
    other = OTHER.model_copy(update={"features": FeatureConfig(image_size=256)})
    with pytest.raises(ConfigError, match="image_size 384 / 256"):
        planned("joint", joined=(other,))
    assert planned("joint", joined=(other,), overrides={"features.image_size": 128})


def test_one_scale_has_no_scales_to_compare() -> None:
    with pytest.raises(ConfigError, match=r"features\.scales is 1"):
        planned("scales", line=LINE.model_copy(update={"features": FeatureConfig(scales=1)}))


def test_overrides_are_typed_like_yaml() -> None:
    texts = [
        "flow.hidden=32",
        "training.learning_rate=1e-3",
        "flow.standardize=false",
        "flow.scales=[0, 1]",
        "data.rev=v1",
    ]
    expected = {"flow.hidden": 32, "training.learning_rate": 1e-3, "flow.standardize": False, "flow.scales": [0, 1]}
    assert parse_overrides([*texts, "data.rev=v1"]) == expected | {"data.rev": "v1"}


@pytest.mark.parametrize("text", ["flow.hidden", "=3", "line=x", "training.seed=1", "flow.scales=[1"])
def test_overrides_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_overrides([text])


def test_a_request_names_what_is_wrong_in_it() -> None:
    plain = {"line": LINE.model_dump(mode="json"), "groups": ["scale"], "seeds": [0, -1], "widths": ["wide"]}
    with pytest.raises(ConfigError, match=r"no group 'scale'.*Did you mean 'scales'\?.*--seeds -1.*--width 'wide'"):
        parse_request(plain)
    with pytest.raises(ConfigError, match="no group 'widht'. Did you mean 'width'") as caught:
        parse_request({"line": LINE.model_dump(mode="json"), "groups": ["widht"]})
    assert "is empty" not in str(caught.value)
    for empty, option in (("groups", "--group"), ("seeds", "--seeds")):
        with pytest.raises(ConfigError, match=f"{option} is empty"):
            parse_request({"line": LINE.model_dump(mode="json"), empty: []})


def test_variants_survive_json() -> None:
    for variant in planned(*GROUPS, **EVERYTHING):
        assert Variant.model_validate_json(variant.model_dump_json()) == variant
