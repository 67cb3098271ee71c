"""Weights are named cheaply, and fetched from S3 once a version."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from threading import Thread

import pytest

from csflow.config import FeatureConfig
from csflow.errors import ConfigError, ModelError
from csflow.features.backbone import (
    Backbone,
    load_backbone,
)
from csflow.features.weights import PACKAGE, weights_digest, weights_file
from tests.damage import damages, inflict

LITE0 = FeatureConfig()


class TestDigest:
    def test_sources(self, tmp_path: Path) -> None:
        (tmp_path / "w.safetensors").write_bytes(b"abc")
        assert weights_digest(LITE0) == f"package:{PACKAGE}=={metadata.version(PACKAGE)}"
        assert weights_digest(FeatureConfig(weights="hub")) == "hub:tf_efficientnet_lite0"
        digest = weights_digest(FeatureConfig(weights=str(tmp_path / "w.safetensors")))
        assert digest == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

    def test_needs_neither_torch_nor_timm(self) -> None:
        code = (
            "import sys; from csflow.config import FeatureConfig; from csflow.features.weights import weights_digest\n"
            "weights_digest(FeatureConfig()); print({'torch', 'timm', 'boto3'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "set()"


@contextmanager
def object_store(objects: dict[str, bytes]) -> Iterator[str]:
    """A server that answers the two S3 calls a download makes."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(send=False)

        def do_GET(self) -> None:
            self.answer(send=True)

        def answer(self, *, send: bool) -> None:
            content = objects.get(self.path.partition("?")[0], b"")
            first, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")
            part = content[int(first) : int(last or len(content)) + 1]
            self.send_response((206 if "Range" in self.headers else 200) if content else 404)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
            self.send_header("ETag", f'"{md5(content).hexdigest()}"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.end_headers()
            if send:
                self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class TestS3:
    @pytest.fixture(autouse=True)
    def credentials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("boto3")
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/nonexistent",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)

    def test_downloads_once_per_version(
        self, backbone: Backbone, trunk_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        objects = {"/models/trunk.safetensors": trunk_file.read_bytes()}
        features = LITE0.model_copy(update={"weights": "s3://models/trunk.safetensors"})
        with object_store(objects) as endpoint:
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            first = weights_digest(features, tmp_path)
            assert load_backbone(features, tmp_path).fingerprint == backbone.fingerprint
            assert len(list(tmp_path.iterdir())) == 1
            objects["/models/trunk.safetensors"] = b"a newer version"
            assert weights_digest(features, tmp_path) != first
        assert len(list(tmp_path.glob("[!.]*.safetensors"))) == len(list(tmp_path.iterdir())) == 2

    def test_present_version_is_not_fetched_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with object_store({"/b/k": b"weights"}) as endpoint:
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            path = weights_file("s3://b/k", tmp_path)
            before = path.stat()
            assert weights_file("s3://b/k", tmp_path).stat() == before

    def test_a_damaged_file_is_put_aside_and_downloaded_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with object_store({"/b/k": b"a good many weights"}) as endpoint:
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            path = weights_file("s3://b/k", tmp_path)
            for damage, content in damages(b"a good many weights"):
                inflict(path, content)
                capsys.readouterr()
                assert weights_file("s3://b/k", tmp_path) == path
                assert path.read_bytes() == b"a good many weights", damage
                assert f"Put aside as {path.name}.damaged" in capsys.readouterr().err, damage

    def test_user_cache_by_default(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with object_store({"/b/k": b"weights"}) as endpoint:
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            path = weights_file("s3://b/k")
        assert path.parent == tmp_path / "csflow" / "weights"
        assert path.read_bytes() == b"weights"

    def test_missing_object(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with object_store({}) as endpoint:
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            with pytest.raises(
                ModelError, match=r"Cannot download weights s3://models/none: .*404.*correct features\.weights"
            ):
                weights_file("s3://models/none", tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_unreachable_store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(
            ModelError, match=r"s3://models/x: http://127.0.0.1:9 does not answer.*Check AWS_ENDPOINT_URL"
        ):
            weights_file("s3://models/x", tmp_path)

    def test_no_object_named(self) -> None:
        with pytest.raises(ConfigError, match="Expected s3://BUCKET/KEY"):
            weights_file("s3://models")
