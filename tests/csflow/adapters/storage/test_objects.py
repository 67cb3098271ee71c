"""One object: in parts, with checksums at both ends, taken up where a transfer broke."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from botocore.config import Config

from csflow.adapters.storage.objects import Objects
from csflow.errors import StorageError, StoreUnreachableError
from tests.csflow.adapters.storage.conftest import BUCKET, Wire

PART = 5 * 2**20


def content(megabytes: float, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(int(megabytes * 2**20))


def through(wire: Wire, attempts: int = 1) -> Objects:
    """Objects reached by way of a wire that can be cut."""
    config = Config(retries={"mode": "standard", "total_max_attempts": attempts}, read_timeout=10)
    return Objects(boto3.client("s3", endpoint_url=wire.url, config=config), BUCKET, part_bytes=PART)


@pytest.fixture
def objects(s3: Any) -> Objects:
    return Objects(s3, BUCKET, part_bytes=PART)


@pytest.mark.parametrize("megabytes", [0, 0.01, 5, 11.5])
def test_what_was_sent_comes_back(objects: Objects, tmp_path: Path, megabytes: float, s3: Any) -> None:
    sent, fetched = tmp_path / "sent", tmp_path / "sub" / "fetched"
    sent.write_bytes(content(megabytes))
    assert objects.upload(sent, "a/b")
    assert s3.get_object(Bucket=BUCKET, Key="a/b")["Body"].read() == sent.read_bytes()
    objects.download("a/b", fetched)
    assert fetched.read_bytes() == sent.read_bytes()
    assert [path.name for path in fetched.parent.iterdir()] == ["fetched"]
    assert objects.upload(sent, "a/b") is False, "the same content is not sent twice"


def test_large_files_travel_in_parts(objects: Objects, tmp_path: Path, s3: Any) -> None:
    file = tmp_path / "file"
    file.write_bytes(content(11.5))
    objects.upload(file, "large")
    assert s3.head_object(Bucket=BUCKET, Key="large")["ETag"].strip('"').endswith("-3")


def test_other_content_replaces(objects: Objects, tmp_path: Path) -> None:
    file = tmp_path / "file"
    for text in (b"one", b"two"):
        file.write_bytes(text)
        assert objects.upload(file, "key")
        assert objects.get("key") == text


def test_what_is_not_there(objects: Objects, tmp_path: Path) -> None:
    assert objects.head("nothing") is None
    assert objects.get("nothing") is None
    with pytest.raises(StorageError, match=f"no object s3://{BUCKET}/nothing. Publish or upload"):
        objects.download("nothing", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_damage_is_found_and_nothing_gets_the_name(objects: Objects, tmp_path: Path, s3: Any) -> None:
    right, wrong = hashlib.sha256(b"sound").hexdigest(), hashlib.sha256(b"spoilt").hexdigest()
    s3.put_object(Bucket=BUCKET, Key="key", Body=b"spoilt", Metadata={"sha256": right})
    for attempt in (lambda: objects.get("key"), lambda: objects.download("key", tmp_path / "file")):
        with pytest.raises(StorageError, match=f"key is damaged: its content has SHA-256 {wrong}, expected {right}"):
            attempt()
    assert list(tmp_path.iterdir()) == [], "a damaged download is not gone on with"


@pytest.mark.parametrize("megabytes", [0.5, 6])
def test_damage_on_the_way_up_is_found(objects: Objects, wire: Wire, tmp_path: Path, megabytes: float) -> None:
    file = tmp_path / "file"
    file.write_bytes(content(megabytes))
    wire.flip_after = 2**18
    with pytest.raises(StorageError, match=rf"s3://{BUCKET}/key arrived damaged"):
        through(wire).upload(file, "key")
    if megabytes > 5:
        assert objects.head("key") is None


def test_a_broken_upload_goes_on_with_its_parts(objects: Objects, wire: Wire, tmp_path: Path, s3: Any) -> None:
    file = tmp_path / "file"
    file.write_bytes(content(22))
    wire.cuts, wire.allowance = 1, 12 * 2**20  # one connection: two parts get through, then it breaks
    with pytest.raises(StoreUnreachableError, match="does not answer"):
        through(wire).upload(file, "large")
    assert objects.head("large") is None, "half of an upload is no object"
    before = wire.carried["up"]
    through(wire).upload(file, "large")
    assert wire.carried["up"] - before < 13 * 2**20, "parts that arrived are not sent again"
    assert s3.get_object(Bucket=BUCKET, Key="large")["Body"].read() == file.read_bytes()
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=BUCKET)


def test_parts_of_other_content_are_not_used(objects: Objects, wire: Wire, tmp_path: Path) -> None:
    file, fetched = tmp_path / "file", tmp_path / "fetched"
    file.write_bytes(content(22))
    wire.cuts, wire.allowance = 1, 12 * 2**20
    with pytest.raises(StoreUnreachableError):
        through(wire).upload(file, "large")
    file.write_bytes(content(22, seed=1))
    objects.upload(file, "large")
    objects.download("large", fetched)
    assert fetched.read_bytes() == file.read_bytes()


def test_a_broken_download_goes_on_by_itself(objects: Objects, wire: Wire, tmp_path: Path) -> None:
    file, fetched = tmp_path / "file", tmp_path / "fetched"
    file.write_bytes(content(20))
    objects.upload(file, "large")
    wire.cuts, wire.allowance = 2, 8 * 2**20
    through(wire).download("large", fetched)
    assert wire.cuts == 0, "the wire was cut twice"
    assert fetched.read_bytes() == file.read_bytes()
    assert wire.carried["down"] < 22 * 2**20, "what had arrived was not fetched again"


def test_a_download_is_taken_up_by_the_next_process(objects: Objects, wire: Wire, tmp_path: Path) -> None:
    file, fetched = tmp_path / "file", tmp_path / "fetched"
    file.write_bytes(content(20))
    objects.upload(file, "large")
    wire.cuts, wire.allowance = 100, 4 * 2**20
    with pytest.raises(StoreUnreachableError, match="does not answer"):
        through(wire).download("large", fetched)
    assert not fetched.exists()
    (part,) = tmp_path.glob(".fetched.*.part")
    assert part.stat().st_size > 12 * 2**20, "four attempts, each with more than nothing"
    wire.cuts = 0
    before = wire.carried["down"]
    through(wire).download("large", fetched)
    assert fetched.read_bytes() == file.read_bytes()
    assert wire.carried["down"] - before < 8 * 2**20


def test_a_download_of_replaced_content_starts_again(objects: Objects, wire: Wire, tmp_path: Path) -> None:
    file, fetched = tmp_path / "file", tmp_path / "fetched"
    file.write_bytes(content(20))
    objects.upload(file, "large")
    wire.cuts, wire.allowance = 100, 4 * 2**20
    with pytest.raises(StoreUnreachableError):
        through(wire).download("large", fetched)
    file.write_bytes(content(20, seed=1))
    objects.upload(file, "large")
    objects.download("large", fetched)
    assert fetched.read_bytes() == file.read_bytes()
