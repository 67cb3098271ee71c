"""The benchmark as people run it, at its smallest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sidebyside import cli
from sidebyside.process import Worker, WorkerError
from sidebyside.rows import Row
from sidebyside.session import Session
from sidebyside.settings import Settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--work", "train_step,flying"], "no work flying"),
        (["--peer", "official=/nowhere"], "expected official=CHECKOUT"),
        (["--quick", "--batch", "9"], "A batch of 9 needs"),
    ],
)
def test_a_wrong_call_is_explained(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("error", "status"), [(1e-5, 0), (1e-3, 1)])
def test_a_wrong_result_fails(
    error: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(session: Session) -> dict[str, str]:
        session.facts["precision"] = "float32"
        session.rows.append(Row("train_step", 1.0, "s", accuracy={"latents": error}))
        return {}

    monkeypatch.setattr(cli, "measure", measure)
    assert cli.main(["--quick"]) == status
    assert ("Wrong result: train_step" in capsys.readouterr().err) == bool(status)


def test_an_implementation_that_raises_is_named(tmp_path: Path) -> None:
    Settings().save(tmp_path / "settings.json")
    with Worker(sys.executable, ("ours-scoring", str(tmp_path)), threads=1) as worker:
        with pytest.raises(WorkerError, match=r"(?s)ours-scoring, score:.*AttributeError"):
            worker.call("score", indices=[])
        assert worker.call("answers") == {"scores": {}, "decisions": {}}  # and it goes on


@pytest.mark.slow
def test_training_is_measured_and_right(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    works = "limit,train_step,memory,epoch,train,store_read"
    checkout = os.environ.get("CSFLOW_TEST_OFFICIAL")
    peers = ["--peer", f"official={checkout}"] if checkout else []
    assert cli.main(["--quick", "--repeats", "1", "--work", works, "--json", str(file), *peers]) == 0
    result = json.loads(file.read_text())
    rows = {row["work"]: row for row in result["rows"]}
    assert rows["train_step"]["accuracy"]["latents"] < 1e-4 or result["machine"]["precision"] == "bfloat16"
    assert rows["train_step"]["ours"] > 0
    assert {name.split(" ")[0] for name in rows} == set(works.split(","))
    assert str(tmp_path) not in file.read_text()


@pytest.mark.slow
def test_features_and_scores_are_measured_and_right(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    works = "extract,retrain,grow,score_one,score_batch,load,model_file"
    assert cli.main(["--quick", "--repeats", "1", "--work", works, "--json", str(file)]) == 0
    rows = {row["work"]: row for row in json.loads(file.read_text())["rows"]}
    assert rows["extract (files to stored features)"]["peer_name"] == "eager timm float32"
    assert rows["score_one (p50)"]["accuracy"]["scores"] < 1e-3
    assert rows["retrain (extraction, unchanged)"]["ratio"] > 1


@pytest.mark.slow
def test_training_needs_no_more_than_a_bare_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = ("pandas", "rich", "scipy", "sklearn", "matplotlib", "typer", "mlflow", "dvc", "kfp", "kserve")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nfor name in {absent}:\n    sys.modules[name] = None\n")
    inherited = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), inherited])))
    with pytest.raises(subprocess.CalledProcessError):  # or the test would prove nothing
        subprocess.run([sys.executable, "-c", "import pandas"], check=True, stderr=subprocess.DEVNULL)
    assert cli.main(["--quick", "--repeats", "1", "--work", "train_step,memory,epoch,train,store_read"]) == 0
