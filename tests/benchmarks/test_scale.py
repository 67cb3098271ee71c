"""docs/guides/scale.md says what the script prints, and the script's sizes are those of real files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import scale
import torch

from csflow.config import FeatureConfig, load_line, presets
from csflow.detector.model_file import save_model
from csflow.features.backbone import load_backbone
from csflow.features.store import FeatureStore
from csflow.flow.cross_scale import CrossScaleFlow

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/guides/scale.md"


def test_the_page_has_the_tables_of_the_script() -> None:
    text = PAGE.read_text()
    found = text.split(scale.MARKS[0])[1].split(scale.MARKS[1])[0].strip()
    assert found == scale.tables(scale.Inputs()).strip(), "run: python benchmarks/scale.py --write docs/guides/scale.md"


def test_write_changes_nothing_but_the_tables(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{scale.MARKS[0]}old{scale.MARKS[1]}after\n")
    assert scale.main(["--write", str(page), "--lines", "250"]) == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{scale.MARKS[1]}after\n")
    assert "| 250 lines |" in text


def test_profiles_are_those_of_the_yaml_files() -> None:
    mtd = load_line(ROOT / "lines/mtd.yaml")
    assert (scale.EMBEDDED.flow, scale.EMBEDDED.epochs) == (mtd.flow, mtd.training.epochs)
    assert load_backbone(mtd.features).shapes(mtd.features) == scale.EMBEDDED.shapes
    paper = presets()["paper-mvtec"]
    assert (scale.PAPER.flow.hidden, scale.PAPER.flow.blocks) == (paper["flow"]["hidden"], paper["flow"]["blocks"])
    assert scale.PAPER.epochs == paper["training"]["epochs"]


def test_shapes_of_the_paper_are_those_of_its_backbone() -> None:
    import timm

    features = presets()["paper-mvtec"]["features"]
    with torch.device("meta"):
        model = timm.create_model(features["backbone"], pretrained=False, features_only=False)
    stage = model.blocks[: features["stage"]]
    with torch.device("meta"):
        maps = stage(model.bn1(model.conv_stem(torch.empty(1, 3, 768, 768))))
    assert (maps.shape[1], maps.shape[2], maps.shape[3]) == scale.PAPER.shapes[0]


def test_an_entry_of_a_real_store_has_the_bytes_of_the_formula(tmp_path: Path) -> None:
    from sidebyside.images import draw_images
    from sidebyside.materials import Listing

    features = FeatureConfig(image_size=128)
    backbone = load_backbone(features)
    cached = FeatureStore(tmp_path / "store").extract(
        Listing(draw_images(tmp_path / "images", 2, 0)).manifest, features, backbone
    )
    profile = scale.Profile("small", cached.shapes, scale.EMBEDDED.flow, epochs=1)
    sizes = {file.stat().st_size for file in (tmp_path / "store").rglob("*") if len(file.name) == 64}
    by_hand = 40 + 2 * sum(192 * side * side for side in (4, 2, 1))
    assert sizes == {profile.entry_bytes} == {by_hand}
    assert scale.EMBEDDED.entry_bytes == 40 + 2 * 192 * (144 + 36 + 9) == scale.measured()["extraction"]["entry_bytes"]
    assert scale.PAPER.entry_bytes == 40 + 2 * 304 * (576 + 144 + 36)


def test_a_model_file_has_two_bytes_a_parameter(tmp_path: Path) -> None:
    flow = CrossScaleFlow(scale.FlowConfig(hidden=64), channels=192, scales=3)
    profile = scale.Profile("narrow", scale.EMBEDDED.shapes, flow.config, epochs=1)
    save_model(flow, tmp_path / "model.safetensors")
    assert profile.parameters == sum(parameter.numel() for parameter in flow.parameters())
    assert (tmp_path / "model.safetensors").stat().st_size == pytest.approx(2 * profile.parameters, rel=0.01)


def test_training_arithmetic_is_three_times_the_multiplications_of_the_forward_pass() -> None:
    """Counted by hand from kernels and sizes, for the paper's flow."""
    channels, hidden, sides = 304, 1024, (24, 12, 6)
    forward = 0
    for kernel in (3, 3, 3, 5):
        for inputs, outputs in ((channels // 2, channels),) * 2:
            inner = sum(inputs * hidden * side**2 for side in sides)
            own = sum(hidden * outputs * side**2 for side in sides)
            across = sum(hidden * outputs * side**2 for side in sides[:-1])
            across += sum(hidden * outputs * side**2 for side in sides[1:])
            forward += 2 * kernel**2 * (inner + own + across)
    assert scale.PAPER.training_flops == pytest.approx(3 * forward, rel=0.03)


def test_totals_are_the_products_of_their_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    inputs = scale.Inputs(lines=100, images=500, fitted=0.5, retrains=2, gpu_tflops=100, utilisation=0.5)
    hours = scale.PAPER.training_flops * 240 * 250 / 50e12 / 3600
    assert scale.gpu_hours(scale.PAPER, inputs) == pytest.approx(hours)
    rows = {row[0]: row[1] for row in scale.fleet(inputs)}
    assert rows["retraining a day, paper on GPU, GPU hours*"] == scale._few(200 * hours)
    assert rows["features, embedded"] == scale._size(100 * 500 * scale.EMBEDDED.entry_bytes)
    assert scale.main(["--lines", "100", "--images", "500"]) == 0
    assert "| 100 lines |" in capsys.readouterr().out


def test_knobs_move_what_the_page_says() -> None:
    base = scale.Inputs()
    held, scored = scale.lines_a_node(base)
    more = scale.lines_a_node(scale.replace(base, node_gib=128.0, inspected=20000))
    assert more[0] > 1.9 * held
    assert more[1] == pytest.approx(scored / 2, abs=1)
    each = scale.measured()["extraction"]["core_seconds_an_image"]
    for images in (1, 1000, 10**7):
        count = scale.shards(images, base)
        assert count is not None
        assert images * each / (4 * count) <= 540, "within the deadline less the start of a pod"
        assert count == 1 or images * each / (4 * (count - 1)) > 540, "and no shard more than that"
    assert scale.shards(1000, scale.replace(base, deadline=60.0)) is None
    assert math.isclose(scale.core_hours(scale.replace(base, images=2000)), 2 * scale.core_hours(base))
