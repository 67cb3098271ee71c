"""The page of a comparison, its pictures and its facts as files."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csflow.detector.calibration import calibrate
from csflow.metrics import image_auroc
from csflow.reporting.comparison import Comparison, judge_scores
from csflow.reporting.comparison_page import Views, paint_views, write_comparison
from tests.csflow.reporting.test_comparison import CHANGED, HELD_OUT, IMAGES, SCORES, TRUTH, pixel_pair, side


def test_each_map_is_painted_with_its_own_calibration() -> None:
    found = Comparison("tiles", side("one", SCORES), side("two", SCORES, scale=1000.0))
    picture, map2d = Image.new("RGB", (40, 30), "white"), np.full((3, 4), 10.0, np.float32)
    seen = paint_views(picture, found, map2d, map2d)
    assert np.asarray(seen.champion).tolist() != np.asarray(picture).tolist()
    assert np.asarray(seen.challenger).tolist() == np.asarray(picture).tolist()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sides = side("version 1", SCORES), side("version <2>", CHANGED, 7.0)
    found = Comparison("tiles", *sides, verdict="It <is> better.", pixels=pixel_pair()[0])
    pictures = {index: Views(*[Image.new("RGB", (500, 300), "grey")] * 3) for index in found.shown()}
    return write_comparison(tmp_path_factory.mktemp("comparison") / "new", found, pictures)


def test_the_page_needs_nothing_from_outside_and_escapes_text(written: Path) -> None:
    page = written.read_text()
    assert "http" not in page
    assert "<script" not in page
    assert "It &lt;is&gt; better." in page
    assert "<2>" not in page
    for heading in ("Pixel AUROC", "Pixel AP", "AUPRO", "By defect type", "their differences are off by at most"):
        assert heading in page
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) > 8
    assert all(source.startswith("data:image/") for source in sources)
    assert len(page) < 2_000_000


def test_the_files_hold_the_facts(written: Path) -> None:
    facts = json.loads((written.parent / "comparison.json").read_text())
    auroc = facts["metrics"]["image_auroc"]
    assert auroc["challenger"] == pytest.approx(image_auroc(CHANGED, TRUTH))
    assert auroc["difference"] == pytest.approx(auroc["challenger"] - auroc["champion"])
    pixels, hole = facts["pixel_metrics"]["pixel_ap"], facts["by_defect"]["hole"]
    assert pixels["difference"] == pytest.approx(pixels["challenger"] - pixels["champion"])
    assert pixels["binning_error"] > 0
    assert hole["difference"] == pytest.approx(auroc["difference"])
    assert hole["images"] == 20
    assert facts["decisions"]["mended"] + facts["decisions"]["spoilt"] == len(facts["changed"])
    assert [image["path"] for image in facts["images"]["champion"]] == [path for path, _ in IMAGES]
    for name in ("ranks.png", "roc.png", *(f"images/00003-{view}.png" for view in Views._fields)):
        assert Image.open(written.parent / name).size[0] > 100


def test_without_thresholds_or_defects_there_is_a_page_still(tmp_path: Path) -> None:
    none = calibrate(HELD_OUT, HELD_OUT[:, None, None], "none")
    good = IMAGES[:40]
    sides = [judge_scores(name, good, scores[:40], none) for name, scores in (("one", SCORES), ("two", CHANGED))]
    page = write_comparison(tmp_path, Comparison("tiles", *sides)).read_text()
    assert "not both have a threshold" in page
    assert "By defect type" not in page
    assert "Pixel" not in page
    assert not (tmp_path / "roc.png").exists()


def test_pictures_come_before_statistics_and_are_large_enough_to_see_a_defect(written: Path) -> None:
    page = written.read_text()
    assert page.index("Decisions that changed") < page.index("How well they separate")
    first = base64.b64decode(re.findall(r"data:image/jpeg;base64,([^\"]+)", page)[0])
    assert max(Image.open(io.BytesIO(first)).size) == 500, "as large as the picture, which is smaller than the limit"
    texts = re.findall(r'<img[^>]*alt="([^"]*)"', page)
    assert len(texts) == page.count("<img")
    assert min(len(text) for text in texts) > 15


def test_the_page_leads_with_the_defects_that_either_detector_finds(written: Path) -> None:
    page = " ".join(written.read_text().split())
    threshold = side("x", SCORES).calibration.threshold
    counts = [int(((scores > threshold) & TRUTH).sum()) for scores in (SCORES, CHANGED)]
    assert f"Defects found at the threshold: {counts[0]} before, {counts[1]} now, of {TRUTH.sum()}." in page
