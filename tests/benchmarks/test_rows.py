import json
import math
from pathlib import Path

import pytest
from sidebyside.bounds import broken
from sidebyside.rows import Row, table, write_json


@pytest.mark.parametrize(
    ("unit", "ours", "peer", "ratio"),
    [("s", 1.0, 4.0, 4.0), ("ms", 4.0, 1.0, 0.25), ("MB", 10.0, 25.0, 2.5), ("images/s", 30.0, 10.0, 3.0)],
)
def test_a_ratio_above_one_means_that_ours_is_better(unit: str, ours: float, peer: float, ratio: float) -> None:
    assert Row("work", ours, unit, peer, "peer").ratio == pytest.approx(ratio)


def test_without_a_peer_there_is_no_ratio() -> None:
    row = Row("limit", 70.0, "GFLOP/s")
    assert row.to_json()["peer"] is None
    assert row.to_json()["ratio"] is None


def test_the_file_holds_what_programs_read(tmp_path: Path) -> None:
    row = Row("train_step", 1.0, "s", 4.0, "official", {"latents": 1e-6})
    write_json(tmp_path / "r.json", machine={"cpu": "x"}, settings={"width": 8}, rows=[row])
    result = json.loads((tmp_path / "r.json").read_text())
    assert set(result) == {"machine", "settings", "rows"}
    assert result["rows"] == [
        {
            "work": "train_step",
            "ours": 1.0,
            "peer": 4.0,
            "peer_name": "official",
            "unit": "s",
            "ratio": 4.0,
            "accuracy": {"latents": 1e-6},
        }
    ]


def test_the_table_shows_ratio_and_accuracy() -> None:
    assert "| train_step | 1 | 4 | s | 4.00× | official | latents 1.0e-06 |" in table(
        [Row("train_step", 1.0, "s", 4.0, "official", {"latents": 1e-6})]
    )


@pytest.mark.parametrize(
    ("name", "value", "precision", "wrong"),
    [
        ("latents", 0.9e-4, "float32", False),
        ("latents", 1.1e-4, "float32", True),
        ("latents", 1.1e-4, "bfloat16", False),
        ("latents", 2.1e-2, "bfloat16", True),
        ("latents", math.nan, "bfloat16", True),
        ("features", 2e-4, "float32", True),
        ("scores", 0.9e-3, "float32", False),
        ("scores", 1.1e-3, "float32", True),
        ("scores", math.inf, "float32", True),
        ("decisions", 0.01, "float32", True),
        ("learned", 2e-2, "float32", True),
        ("scores of the peer", 1.0, "float32", False),
    ],
)
def test_a_bound_holds_or_is_named(name: str, value: float, precision: str, wrong: bool) -> None:
    sentences = broken([Row("work", 1.0, "s", accuracy={name: value})], precision)
    assert bool(sentences) == wrong
    assert all("work" in sentence and name in sentence for sentence in sentences)
