"""The report's facts are right, its page is complete and needs nothing from outside."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from csflow.config import CalibrationConfig
from csflow.detector.calibration import Calibration, calibrate
from csflow.metrics import IMAGE_METRICS, PIXEL_METRICS, Measured, PixelMetric, clopper_pearson
from csflow.reporting.findings import Evaluation, Example, ImageResult, PixelFindings, Sample
from csflow.reporting.normality import FeatureSample
from csflow.reporting.report import write_report
from csflow.reporting.selection import choose_examples, choose_samples
from csflow.reporting.verdict import write_verdict

PICTURE = Image.new("L", (500, 400), 90)
PIXEL: dict[PixelMetric, Measured] = {
    "pixel_auroc": Measured(0.93, 0.91, 0.95),
    "pixel_ap": Measured(0.61, 0.5, 0.7),
    "aupro": Measured(0.8, 0.7, 0.9),
}
PIXELS = PixelFindings(PIXEL, {"crack": PIXEL}, dict.fromkeys(PIXEL, 2e-4))


def calibration(kind: Literal["conformal", "none"] = "conformal") -> Calibration:
    scores = np.linspace(0.0, 1.0, 99)
    config: CalibrationConfig | Literal["none"] = CalibrationConfig(alpha=0.05) if kind == "conformal" else "none"
    return calibrate(scores, scores[:, None, None] * np.ones((2, 2)), config)


def result(calibrated: Calibration, score: float, defect: str = "", number: int = 0) -> ImageResult:
    label: Literal["good", "defective"] = "defective" if defect else "good"
    path = f"test/{defect or 'good'}/{number:03d}.png"
    return ImageResult(path, label, defect, score, calibrated.p_value(score), calibrated.decide(score))


def evaluation(kind: Literal["conformal", "none"] = "conformal") -> Evaluation:
    calibrated, rng = calibration(kind), np.random.default_rng(0)
    good = [result(calibrated, score, "", i) for i, score in enumerate(rng.random(40))]
    cracks = [result(calibrated, score, "crack", i) for i, score in enumerate(0.8 + rng.random(20))]
    holes = [result(calibrated, score, "hole", i) for i, score in enumerate(1.5 + rng.random(5))]
    images = good + cracks + holes
    samples = [Sample(group, images[i], PICTURE, PICTURE) for group, i in choose_samples(images, calibrated.threshold)]
    examples = [Example(images[i], PICTURE, np.full((4, 4), 0.5, np.float32)) for i in choose_examples(images)]
    features = FeatureSample(rng.normal(size=(50, 9)), tuple(f"channel {i}" for i in range(9)))
    return Evaluation(
        "tiles", images, calibrated, PIXELS, samples, examples, features, [2.0, 1.0, 0.5],
        {"git_rev": "abc123", "seed": 0, "images": {"fit": 600, "test": 65}},
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report") / "new"
    assert write_report(directory, evaluation()) == directory / "report.html"
    return directory


def test_the_page_says_how_far_binning_puts_each_pixel_metric_off(written: Path) -> None:
    assert (written / "report.html").read_text().count("off by at most 0.0002 by binning") == len(PIXEL)


def test_the_json_holds_the_facts(written: Path) -> None:
    facts = json.loads((written / "report.json").read_text())
    images = facts["images"]
    labels = [image["label"] == "defective" for image in images]
    assert facts["image_auroc"] == pytest.approx(roc_auc_score(labels, [image["score"] for image in images]))
    assert facts["image_auroc_interval"][0] < facts["image_auroc"] < facts["image_auroc_interval"][1]
    assert facts["pixel_auroc"] == 0.93
    threshold = facts["calibration"]["threshold"]
    alarms = sum(image["score"] > threshold for image in images if image["label"] == "good")
    assert facts["false_alarms"] == {"events": alarms, "trials": 40, "interval": list(clopper_pearson(alarms, 40))}
    assert facts["misses"]["trials"] == 25
    assert [(row["defect"], row["images"]) for row in facts["defects"]] == [("crack", 20), ("hole", 5)]
    assert facts["defects"][1]["detected"] == 5
    assert facts["roc"]["tpr"][-1] == 1.0
    assert facts["nll"] == [2.0, 1.0, 0.5]
    assert facts["lineage"] == {"git_rev": "abc123", "seed": "0", "images": {"fit": 600, "test": 65}}


def test_the_auroc_of_a_defect_type_is_against_all_good_images() -> None:
    found = evaluation()
    crack = np.array([r.defect == "crack" for r in found.images])
    kept = crack | ~found.labels
    assert found.defects[0].image_auroc == pytest.approx(roc_auc_score(crack[kept], found.scores[kept]))


def test_every_picture_is_written_and_named(written: Path) -> None:
    facts = json.loads((written / "report.json").read_text())
    named = [f"{name}.png" for name in ("scores", "roc", "features", "training", "localisation", "mistakes")]
    for name in (*named, *facts["samples"]):
        assert Image.open(written / name).size[0] > 100
    assert Image.open(written / next(iter(facts["samples"]))).size == PICTURE.size


def test_the_page_needs_nothing_from_outside(written: Path) -> None:
    page = (written / "report.html").read_text()
    assert "http" not in page
    assert "<script" not in page
    assert "<link" not in page
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) > 10
    assert all(source.startswith("data:image/") for source in sources)


def test_the_page_says_what_was_found(written: Path) -> None:
    page, found = (written / "report.html").read_text(), evaluation()
    assert found.image_auroc is not None
    assert found.misses is not None
    for fact in (f"{found.image_auroc:.4f}", found.calibration.statement, "crack", "hole", "abc123",
                 f"{25 - found.misses.events} of 25 defective test images were found at the threshold",
                 "Missed defects", "test/good/000.png"):  # fmt: skip
        assert fact in page


def test_text_of_the_user_is_escaped(tmp_path: Path) -> None:
    found = evaluation()
    evil = replace(found.images[0], path="test/<script>alert(1)</script>.png")
    bare = replace(found, images=[evil, *found.images[1:]], samples=(), examples=(), features=None)
    page = write_report(tmp_path, bare).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("kind", "keep", "sentence"),
    [("none", "all", "65 test images were scored, without decisions"), ("none", "good", "40 test images"),
     ("conformal", "good", "no defective test images"), ("conformal", "none", "nothing was measured"),
     ("conformal", "defective", "were found")],
)  # fmt: skip
def test_a_report_is_possible_whatever_is_missing(
    tmp_path: Path, kind: Literal["conformal", "none"], keep: str, sentence: str
) -> None:
    full = evaluation(kind)
    images = [r for r in full.images if keep in (r.label, "all")]
    bare = Evaluation("tiles", images, full.calibration)
    assert sentence in write_report(tmp_path, bare).read_text()
    facts = json.loads((tmp_path / "report.json").read_text())
    assert (facts["image_auroc"] is None) == (keep != "all")
    assert (facts["false_alarms"] is None) == (kind == "none")


def test_far_too_many_false_alarms_are_said_aloud(tmp_path: Path) -> None:
    full, calibrated = replace(evaluation(), samples=(), examples=(), features=None), calibration()
    assert not full.promise_refuted
    shifted = replace(full, images=[result(calibrated, 0.9 + i / 100, "", i) for i in range(40)])
    assert shifted.promise_refuted
    assert "More false alarms than promised" in write_report(tmp_path, shifted).read_text()


def test_counts_of_the_lineage_are_spelt_out(written: Path) -> None:
    page = (written / "report.html").read_text()
    row = re.sub(r"<[^>]+>|\s+", " ", page[page.index('<th scope="row">images</th>') :][:300])
    assert " ".join(row.split()).startswith("images 600 fit , 65 test")
    assert "{&#39;fit&#39;" not in page


def test_every_metric_stands_in_page_and_json_with_its_interval(written: Path) -> None:
    page, facts, found = (
        (written / "report.html").read_text(),
        json.loads((written / "report.json").read_text()),
        evaluation(),
    )
    assert set(facts["metrics"]) == {*IMAGE_METRICS, *PIXEL_METRICS}
    for name, measured in found.metrics.items():
        assert facts["metrics"][name] == pytest.approx(measured._asdict())
        assert f"{measured.value:.4f}" in page
        assert f"[{measured.low:.4f}, {measured.high:.4f}]" in page
    by_type = {row["defect"]: set(row["metrics"]) for row in facts["defects"]}
    assert by_type == {"crack": {*IMAGE_METRICS, *PIXEL_METRICS}, "hole": set(IMAGE_METRICS)}


def test_average_precision_is_scikit_learns() -> None:
    found = evaluation()
    assert found.metrics["average_precision"].value == pytest.approx(
        average_precision_score(found.labels, found.scores)
    )


def test_feature_histograms_have_their_numbers_in_the_json(written: Path) -> None:
    features = json.loads((written / "report.json").read_text())["features"]
    assert (features["images"], features["drawn"], len(features["shown"])) == (50, 9, 6)
    distances = [row["distance"] for row in features["shown"]]
    assert distances == sorted(distances)


def test_how_wrong_a_mistake_is_stands_beside_it(written: Path) -> None:
    page, found = (written / "report.html").read_text(), evaluation()
    miss = next(sample.result for sample in found.samples if sample.group == "miss")
    times = found.times_threshold(miss.score)
    assert times is not None
    assert f"p&nbsp;{miss.p_value:.3f} · {times:.3g}&nbsp;×&nbsp;threshold" in page
    assert replace(found, calibration=calibration("none")).times_threshold(1.0) is None


def test_thumbnails_are_small_and_the_page_stays_light(written: Path) -> None:
    import base64

    page = (written / "report.html").read_text()
    encoded = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    sizes = [Image.open(io.BytesIO(base64.b64decode(text))).size for text in encoded]
    assert max(max(size) for size in sizes) <= 320
    assert len(page) < 2_000_000


def test_defects_found_lead_with_their_interval(written: Path) -> None:
    page, found = (written / "report.html").read_text(), evaluation().detections
    assert found is not None
    assert found.interval is not None
    lead = re.sub(r"<[^>]+>|\s+", " ", page[page.index('class="lead"') : page.index("</header>")])
    assert f"{found.events} of {found.trials} defective" in lead
    assert f"{100 * found.interval.low:.1f} % to {100 * found.interval.high:.1f} %" in lead
    assert page.index("</header>") < page.index("Where it sees defects") < page.index("How well it separates")
    assert found.text.startswith(f"{found.events} of 25 (")
    assert json.loads((written / "report.json").read_text())["defects_found"]["events"] == found.events


@pytest.mark.parametrize(("found", "warned"), [(2, True), (12, True), (13, False), (25, False)])
def test_a_detector_that_finds_few_defects_is_warned_of(tmp_path: Path, found: int, warned: bool) -> None:
    calibrated = calibration()
    images = [result(calibrated, 2.0 if i < found else 0.9, "crack", i) for i in range(25)]
    images += [result(calibrated, 0.1, "", i) for i in range(30)]
    page = write_report(tmp_path, Evaluation("tiles", images, calibrated)).read_text()
    assert ("Few defects are found" in page) == warned


def test_the_decision_is_put_on_top_and_replaced(tmp_path: Path) -> None:
    page = write_report(tmp_path, Evaluation("tiles", evaluation().images, calibration()))
    assert "Not registered yet" in page.read_text()
    for version, reason in ((3, r"It is <worse> \1."), (4, "It is better.")):
        assert write_verdict(page, version=version, outcome="kept_worse", reason=reason)
    text = page.read_text()
    assert "Version 4: kept worse." in text
    assert "It is better." in text
    assert "worse&gt;" not in text
    assert "Not registered yet" not in text
    assert text.index("Version 4") < text.index('class="lead"')
    page.write_text("<p>a report of csflow 0.5</p>")
    assert not write_verdict(page, version=1, outcome="promoted", reason="")
    assert page.read_text() == "<p>a report of csflow 0.5</p>"


def test_every_picture_has_a_text_for_those_who_do_not_see_it(written: Path) -> None:
    page = (written / "report.html").read_text()
    texts = re.findall(r'<img[^>]*alt="([^"]*)"', page)
    assert len(texts) == page.count("<img")
    assert min(len(text) for text in texts) > 15
    assert any("test/crack/" in text and "called" in text for text in texts)


def test_the_colour_scale_is_stated(written: Path) -> None:
    page, scale = (written / "report.html").read_text(), calibration().scale
    for value in scale:
        assert f"{value:.3g}</span>" in page
    assert "black is the median of good images" in " ".join(page.split())


def test_kinds_without_a_flow_do_not_explain_why_a_flow(tmp_path: Path) -> None:
    without = replace(evaluation(), samples=(), examples=(), features=None)
    assert "Why a flow" not in write_report(tmp_path, without).read_text()


def test_aupro_over_all_and_by_type_is_explained_where_both_are_shown(written: Path, tmp_path: Path) -> None:
    sentence = "AUPRO by type and AUPRO over all"
    assert sentence in (written / "report.html").read_text()
    one_type = [r for r in evaluation().images if r.defect != "hole"]
    assert sentence not in write_report(tmp_path, Evaluation("tiles", one_type, calibration(), PIXELS)).read_text()
