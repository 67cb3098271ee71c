from __future__ import annotations

from pathlib import Path

import pytest

from csflow.config import LineConfig, line_names, load_line, parse_line, parse_line_json, presets
from csflow.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
MINIMAL = "line: tiles\ndata: {path: data}\n"


def parse(text: str, folder: Path = Path("lines")) -> LineConfig:
    return parse_line(text, source=folder / "tiles.yaml")


def test_relative_repository_starts_at_the_yaml_file(tmp_path: Path) -> None:
    line = parse_line("line: a\ndata: {repo: ../there, path: data}", source=tmp_path / "lines" / "a.yaml")
    assert line.data.repo == str(tmp_path / "there")
    assert (
        parse_line("line: a\ndata: {repo: 'https://h/x.git', path: d}", source=tmp_path).data.repo == "https://h/x.git"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL + "trainig: {epochs: 3}", ["tiles.yaml", "'trainig'", "Did you mean 'training'", "calibration"]),
        (MINIMAL + "training: {epoch: 3}", ["'training.epoch'", "Did you mean 'epochs'", "batch_size"]),
        (MINIMAL + "schedule: {crom: x}", ["'schedule.crom'", "Did you mean 'cron'", "'schedule.cron' is missing"]),
        (MINIMAL + "resources: {gpu: 1}", ["'resources.gpu'", "Did you mean 'gpus'", "node_selector"]),
        (MINIMAL + "resources: {tolerations: [{keyy: x}]}", ["tolerations.0.keyy'", "Did you mean 'key'"]),
        (MINIMAL + "resources: {memory: 500m}", ["resources.memory", "'500m'", "8Gi"]),
        (MINIMAL + "resources: {memory: 8GB}", ["resources.memory", "'8GB'"]),
        (MINIMAL + "serving: {canary: [{percnt: 1, minutes: 2}]}", ["canary.0.percnt'", "Did you mean 'percent'"]),
        (MINIMAL + "serving: {canary: [{percent: 50, minutes: 1}, {percent: 10, minutes: 1}]}", ["ascending"]),
        (MINIMAL + "patchcore: {coresett: 1}", ["'patchcore.coresett'", "Did you mean 'coreset'"]),
        (MINIMAL + "training: {epochs: three}", ["line 3: training.epochs", "'three'", "whole number"]),
        (MINIMAL + "training: {epochs: 2.5}", ["training.epochs", "2.5"]),
        (MINIMAL + "training: {epochs: true}", ["training.epochs", "true"]),
        (MINIMAL + "calibration: {alfa: 0.1}", ["'calibration.alfa'", "alpha"]),
        (MINIMAL + "calibration: sometimes", ["line 3: calibration:", "'alpha', or none", "'sometimes'"]),
        (MINIMAL + "calibration: nope", ["calibration:", "'alpha', or none", "'nope'", "Did you mean 'none'?"]),
        (MINIMAL + "calibration:", ["calibration is empty", "'alpha', or none"]),
        (MINIMAL + "training:", ["training is empty", "epochs", "leave the key out for the default"]),
        ("line: tiles\ndata:", ["data is empty", "path, repo, rev"]),
        (MINIMAL + "training: [1]", ["training: expected keys below it", "epochs"]),
        (MINIMAL + "training: {betas: 0.5}", ["training.betas: expected a list"]),
        (MINIMAL + "training: {betas: [0.5]}", ["training.betas: expected more values"]),
        (MINIMAL + "training: {betas: [0.5, 0.6, 0.7]}", ["training.betas: expected at most 2 values"]),
        (MINIMAL + "training: {eps: .inf, learning_rate: .nan}", ["training.eps: expected a finite", ".inf", ".nan"]),
        (MINIMAL + "training: {epochs: 9999999999999999999999}", ["training.epochs", "1000000000"]),
        (MINIMAL + "training: {precision: bfloat}", ["'float32' or 'bfloat16'", "Did you mean 'bfloat16'?"]),
        (MINIMAL + "flow: {standardize: maybe}", ["expected true or false, got 'maybe'"]),
        (MINIMAL + "resources: {node_selector: [1]}", ["node_selector: expected keys with values"]),
        (MINIMAL + "epochs: 3", ["unknown key 'epochs'", "Did you mean 'training.epochs'?"]),
        (MINIMAL + "detector: no", ["line 3: detector: unknown kind", "csflow, nearest-neighbour"]),
        (MINIMAL + "preset: paper-mtdd", ["Did you mean 'paper-mtd'?"]),
        (MINIMAL + "schedule: {cron: bad cron, timezone: Mars/X}", ["'bad cron' has 2 fields", "'Mars/X' is no IANA"]),
        (MINIMAL + "schedule: {cron: '0 3 30 2 *'}", ["never comes"]),
        (MINIMAL + "schedule: {cron: '0 3 * * *', timezone: europe/berlin}", ["Did you mean Europe/Berlin?"]),
        (MINIMAL + "training: {epochs: 1}\ntraining: {eps: 1}", ["line 4: key 'training'", "in line 3"]),
        (MINIMAL + "flow: {hidden: 1, hidden: 2, hiden: 3}", ["key 'flow.hidden' is there", "'flow.hiden'"]),
        ("", ["has no keys", "line: tiles"]),
        ("# only this", ["has no keys", "a comment"]),
        ("tiles", ["has no keys, only 'tiles'"]),
        (MINIMAL + "roles: {calibrate: 0.7, gate: 0.4}", ["calibrate + gate", "1.1"]),
        (MINIMAL + "flow: {blocks: 2, kernel_sizes: [3, 4]}", ["2 odd numbers", "[3, 4]"]),
        (MINIMAL + "preset: papr", ["'papr'", "paper-mtd", "paper-mvtec"]),
        (MINIMAL + "preset: 5", ["preset", "name or a list of names", "paper-mtd"]),
        (MINIMAL + "preset: [[a]]", ["preset", "name or a list of names", "paper-mtd"]),
        ("line: Tiles\ndata: {path: data}", ["line", "'Tiles'"]),
        ("line: tiles", ["'data' is missing"]),
        ("- a\n- b", ["list"]),
        ("line: [", ["not YAML"]),
    ],
)
def test_wrong_yaml_is_explained(text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_code == 2


def test_numbers_in_text_fields_are_the_text_that_was_written() -> None:
    line = parse(
        "line: 007\ndata: {path: 2024, rev: 0123456}\ndescription: 5\nresources: {cpu: 2, node_selector: {gpu: yes}}\n"
        "quality: {modes: [1, L]}\nserving: {cpu: 0.5}"
    )
    assert (line.line, line.data.path, line.data.rev, line.description) == ("007", "2024", "0123456", "5")
    assert (line.resources.cpu, line.resources.node_selector, line.serving.cpu) == ("2", {"gpu": "yes"}, "0.5")
    assert line.quality.modes == ("1", "L")
    assert parse(MINIMAL.replace("data}", "data, rev: 12e45678}")).data.rev == "12e45678"


def test_scientific_numbers_need_no_point() -> None:
    line = parse(MINIMAL + "training: {learning_rate: 1e-3, betas: [5e-1, 9E-1]}\ncalibration: {alpha: 5e-2}")
    assert (line.training.learning_rate, line.training.betas) == (0.001, (0.5, 0.9))
    assert line.calibration != "none"
    assert line.calibration.alpha == 0.05


def test_unknown_line_suggests_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSFLOW_LINES", str(ROOT / "lines"))
    with pytest.raises(ConfigError, match="Did you mean demo-texture"):
        load_line("demo-textur")
    with pytest.raises(ConfigError, match="does not exist"):
        load_line("nowhere/else.yaml")


def test_an_unknown_line_outside_a_project_names_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CSFLOW_LINES", "CSFLOW_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no line 'bolts'.*No csflow project found: neither .*csflow --project DIR"):
        load_line("bolts")
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "bolt.yaml").touch()
    with pytest.raises(ConfigError, match=r"Did you mean bolt\? Known lines: bolt\."):
        load_line("bolts")


def test_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "photo.yaml"
    file.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ConfigError, match=r"Cannot read .*photo\.yaml: byte 0xff in line 1"):
        load_line(file)
    file.write_bytes(MINIMAL.encode("utf-16"))
    with pytest.raises(ConfigError, match=r"Cannot read .*photo\.yaml: it is UTF-16"):
        load_line(file)
    file.write_bytes(b"line: photo\ndescription: Stra\xdfe\n")
    with pytest.raises(ConfigError, match="byte 0xdf in line 2"):
        load_line(file)


def test_the_byte_order_mark_of_an_editor_does_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "tiles.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load_line(file).line == "tiles"


def test_every_line_of_this_repository_is_valid_and_named_like_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CSFLOW_LINES", str(ROOT / "lines"))
    assert {"demo-texture", "demo-object", "mtd"} <= set(line_names())
    assert [load_line(name).line for name in line_names()] == line_names()


def test_presets_hold_the_papers_settings_and_the_file_wins() -> None:
    mvtec, mtd = parse(MINIMAL + "preset: paper-mvtec"), parse(MINIMAL + "preset: paper-mtd")
    for line, size, epochs in ((mvtec, 768, 240), (mtd, 384, 60)):
        assert (line.features.backbone, line.features.stage) == ("tf_efficientnet_b5.aa_in1k", 6)
        assert (line.features.image_size, line.training.epochs, line.flow.hidden) == (size, epochs, 1024)
        assert (line.training.learning_rate, line.training.betas, line.training.weight_decay) == (
            2e-4,
            (0.5, 0.9),
            1e-5,
        )
        assert (line.flow.kernels, line.flow.clamp, line.training.batch_size) == ((3, 3, 3, 5), 3.0, 16)
    line = parse(MINIMAL + "preset: [paper-mtd, official]\ntraining: {epochs: 7}")
    assert (line.training.eps, line.training.betas, line.features.downscale) == (1e-4, (0.9, 0.999), "nearest")
    assert (line.training.epochs, line.flow.hidden) == (7, 1024)
    assert all(parse(MINIMAL + f"preset: {name}") for name in presets())


def test_configuration_survives_the_way_from_step_to_step() -> None:
    line = parse(MINIMAL + "calibration: none\nflow: {blocks: 1, kernel_sizes: [5]}")
    assert parse_line_json(line.model_dump_json()) == line


def test_method_digest_counts_what_trains_and_nothing_else() -> None:
    line = parse(MINIMAL)
    same = parse(MINIMAL + "training: {device: cpu, checkpoint_seconds: 9}\nserving: {port: 1234}\ngate: {margin: 0.2}")
    assert line.method_digest() == same.method_digest()
    for change in ("training: {epochs: 61}", "flow: {hidden: 8}", "features: {image_size: 256}", "roles: {gate: 0.2}",
                   "calibration: {alpha: 0.2}", "calibration: none", "training: {seed: 1}"):  # fmt: skip
        assert parse(MINIMAL + change).method_digest() != line.method_digest(), change
    assert line.with_seed(1).method_digest() == parse(MINIMAL + "training: {seed: 1}").method_digest()


@pytest.mark.parametrize("name", ["bolts.yaml", "Nuts.yaml", "nuts-2.yaml", "nuts.tmp.yml"])
def test_a_copied_file_with_the_old_name_in_it_is_refused(name: str, tmp_path: Path) -> None:
    """It would train on one product and become champion of the other."""
    (tmp_path / name).write_text("line: nuts\ndata: {path: data/bolts}\n")
    stem, suffix = name.rsplit(".", 1)
    with pytest.raises(ConfigError, match=rf"{name} says 'line: nuts'.*Set 'line: {stem}'.*to nuts\.{suffix}"):
        load_line(tmp_path / name)
