"""Any changed bit of a sealed file is noticed, whatever kind of file it is."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from csflow.errors import CsflowError, DamagedFileError
from csflow.system import seals
from csflow.system.seals import check, put_aside, read_sealed_json, seal, sealed, write_sealed_json
from tests.damage import damages, inflict

VALUE = {"name": "Löcher", "numbers": [1, 2.5, None], "deep": {"a": True}}


def is_damaged(file: Path) -> bool:
    try:
        check(file)
    except DamagedFileError:
        return True
    return False


def test_json_survives(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    write_sealed_json(file, VALUE)
    assert read_sealed_json(file) == VALUE
    assert json.loads(file.read_text()) == VALUE | {"seal": json.loads(file.read_text())["seal"]}, "JSON to others"
    check(file)


@pytest.mark.parametrize("required", [True, False])
def test_every_flipped_bit_of_json_is_noticed_or_harmless(tmp_path: Path, required: bool) -> None:
    file = tmp_path / "x.json"
    write_sealed_json(file, VALUE)
    content = file.read_bytes()
    unnoticed = 0
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(flipped)
        try:
            assert read_sealed_json(file, required=required) == VALUE
            unnoticed += 1
        except DamagedFileError:
            pass
    assert unnoticed == (0 if required else 8 * len("csflow-sha256:") - _unparsable())


def _unparsable() -> int:
    """Flipped bits of the mark that make other JSON, or none."""
    broken = 0
    for bit in range(8 * len("csflow-sha256:")):
        flipped = bytearray(b"csflow-sha256:")
        flipped[bit // 8] ^= 1 << (bit % 8)
        try:
            json.loads(b'"' + flipped + b'"')
        except ValueError:
            broken += 1
    return broken


def test_safetensors(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    tensors = {"a": np.arange(12.0), "b": np.ones((3, 2), np.float16)}
    save_file(tensors, file, metadata={seals.KEY: seals.OPEN})
    with pytest.raises(DamagedFileError, match="SHA-256"):
        check(file)
    seal(file)
    check(file)
    np.testing.assert_array_equal(load_file(file)["a"], tensors["a"])
    content = file.read_bytes()
    for damage, changed in damages(content, flips=64):
        inflict(file, changed)
        assert is_damaged(file), damage


def test_a_file_without_a_seal(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"a": 1}')
    assert read_sealed_json(file, required=False) == {"a": 1}
    check(file, required=False)
    for read in (read_sealed_json, check):
        with pytest.raises(DamagedFileError, match=r"x\.json is damaged: it has no seal\."):
            read(file)
    with pytest.raises(DamagedFileError, match=r"y\.json is missing"):
        check(tmp_path / "y.json", required=False)
    file.write_text("[1]")
    with pytest.raises(DamagedFileError, match="expected an object"):
        read_sealed_json(file, required=False)
    with pytest.raises(ValueError, match="no open seal"):
        sealed(b"nothing")


def test_what_is_put_aside_is_kept_named_and_dated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        file = tmp_path / "model"
        file.write_text(f"{number}")
        os.utime(file, (0, 0))
        put_aside(file, "It is damaged.")
    assert not (tmp_path / "model").exists()
    kept = {path.name: path for path in tmp_path.iterdir()}
    assert {name: path.read_text() for name, path in kept.items()} == {
        "model.damaged": "0",
        "model.damaged-2": "1",
        "model.damaged-3": "2",
    }
    assert all(time.time() - path.stat().st_mtime < 600 for path in kept.values()), "csflow prune removes old ones"
    assert "damaged: It is damaged. Put aside as model.damaged-3; it is made again." in capsys.readouterr().err
    put_aside(tmp_path / "model", "It is missing.")
    assert "missing" not in capsys.readouterr().err, "another process was faster"


def test_what_cannot_be_renamed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(path: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x").touch()
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(CsflowError, match=r"x is damaged\. It cannot be renamed \(Permission denied\)"):
        put_aside(tmp_path / "x", f"{tmp_path / 'x'} is damaged.")
