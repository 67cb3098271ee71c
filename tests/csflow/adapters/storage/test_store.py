"""The object store against a real S3-compatible server over HTTP, also one whose connections break."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from csflow.adapters.storage import SharedFeatures, Store
from csflow.adapters.storage.features import key_of
from csflow.errors import ConfigError, DamagedObjectError, StorageError, StoreUnreachableError
from csflow.system.files import sha256_file
from csflow.system.ports import free_port

PART = 5 << 20
"""The smallest part S3 takes."""


@pytest.fixture
def store(bucket: str) -> Store:
    return Store(bucket, "factory/a", attempts=3, pause=0.01)


def noise(size: int, seed: int = 0) -> bytes:
    import numpy as np

    return np.random.default_rng(seed).bytes(size)


def make(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def overwrite(store: Store, key: str, content: bytes, **more: object) -> None:
    """Change an object behind csflow's back."""
    store.client.put_object(Bucket=store.bucket, Key=f"{store.prefix}/{key}", Body=content, **more)


class Link(socketserver.ThreadingTCPServer):
    """A proxy between client and server that can break, count and damage what goes through."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, server: str) -> None:
        super().__init__(("127.0.0.1", 0), _Through)
        host, _, port = server.removeprefix("http://").partition(":")
        self.target = (host, int(port))
        self.cut_up: list[int] = []
        self.cut_down: list[int] = []
        self.flip_up = b""
        self.up = self.down = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Through(socketserver.BaseRequestHandler):
    server: Link

    def handle(self) -> None:
        with socket.create_connection(self.server.target) as beyond:
            back = threading.Thread(target=self.pump, args=(beyond, self.request, "down"), daemon=True)
            back.start()
            self.pump(self.request, beyond, "up")
            back.join()

    def pump(self, source: socket.socket, target: socket.socket, way: str) -> None:
        """Copy until the end, or until more went through than the next limit of this way allows."""
        link, passed = self.server, 0
        limits = link.cut_up if way == "up" else link.cut_down
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                passed += len(data)
                setattr(link, way, getattr(link, way) + len(data))
                if limits and passed > limits[0]:
                    limits.pop(0)
                    break
                if way == "up" and link.flip_up:
                    data = data.replace(link.flip_up, bytes(len(link.flip_up)))
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def link(s3_server: str) -> Iterator[Link]:
    with Link(s3_server) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        yield proxy
        proxy.shutdown()


@pytest.fixture
def shaky(store: Store, link: Link) -> Store:
    return Store(store.bucket, store.prefix, endpoint_url=link.url, part_bytes=PART, workers=1, attempts=3, pause=0.01)


class TestObjects:
    def test_come_back_as_they_were(self, store: Store) -> None:
        for name, content in {"a": noise(1000), "empty": b""}.items():
            store.write(f"x/{name}", content)
            assert store.read(f"x/{name}") == content
        assert store.read("x/none") is None
        assert store.head("x/none") is None
        assert [(one.key, one.size) for one in store.list("x/")] == [("x/a", 1000), ("x/empty", 0)]
        assert store.uri("x/a") == f"s3://{store.bucket}/factory/a/x/a"
        store.delete(["x/a", "x/none"])
        assert [one.key for one in store.list("")] == ["x/empty"]

    def test_listing_and_deletion_go_over_pages(self, bucket: str) -> None:
        store = Store(bucket)
        for number in range(3):
            overwrite(Store(bucket, "k"), f"{number:04}", b"")
        store.client.meta.events.register(
            "before-parameter-build.s3.ListObjectsV2", lambda params, **_: params.update(MaxKeys=2)
        )
        assert [one.key for one in store.list("k/")] == ["k/0000", "k/0001", "k/0002"]
        store.delete([one.key for one in store.list("k/")])
        assert list(store.list("")) == []

    def test_large_ones_go_in_parts(self, bucket: str) -> None:
        store, content = Store(bucket, part_bytes=PART), noise(2 * PART + 7)
        store.write("big", content)
        head = store.head("big")
        assert head is not None
        assert head["ETag"].strip('"').endswith("-3")
        assert head["Metadata"]["sha256"] == hashlib.sha256(content).hexdigest()
        assert store.read("big") == content

    @pytest.mark.parametrize(
        ("damage", "complaint"),
        [
            (b"x" * 1000, r"found SHA-256 [0-9a-f]{64} \(1000 bytes\), expected [0-9a-f]{64}"),
            (noise(1000)[:400], r"\(400 bytes\), expected"),
        ],
    )
    def test_damage_is_found(self, store: Store, damage: bytes, complaint: str) -> None:
        store.write("x/a", noise(1000))
        overwrite(store, "x/a", damage, Metadata={"sha256": hashlib.sha256(noise(1000)).hexdigest()})
        with pytest.raises(DamagedObjectError, match=rf"s3://{store.bucket}/factory/a/x/a is damaged: .*{complaint}"):
            store.read("x/a")

    def test_without_a_digest_are_not_trusted(self, store: Store) -> None:
        overwrite(store, "foreign", b"abc")
        with pytest.raises(DamagedObjectError, match="carries no SHA-256"):
            store.read("foreign")

    def test_damage_on_the_way_up_is_found(self, shaky: Store, link: Link) -> None:
        """This server believes what arrives; asked afterwards, it tells another digest."""
        content = b"begin" + noise(2000) + b"THE VERY MIDDLE" + noise(2000, 1)
        link.flip_up = b"THE VERY MIDDLE"
        with pytest.raises(DamagedObjectError, match=r"x/a has (MD5|checksum) .*, expected (MD5|checksum)"):
            shaky.write("x/a", content)


class TestBrokenConnections:
    def test_a_download_resumes_where_it_broke(self, shaky: Store, store: Store, link: Link) -> None:
        store.write("a", noise(3 << 20))
        link.cut_down += [1 << 20, 1 << 20]
        assert shaky.read("a") == noise(3 << 20)
        assert link.cut_down == []
        assert link.down < 3.5 * (1 << 20)

    def test_a_download_that_keeps_breaking_ends_with_a_remedy(self, shaky: Store, store: Store, link: Link) -> None:
        store.write("a", noise(1 << 20))
        link.cut_down += [100_000] * 9
        with pytest.raises(StoreUnreachableError, match=r"broke off, after several attempts at s3://.*run the same"):
            shaky.read("a")

    def test_an_upload_is_tried_again(self, shaky: Store, store: Store, link: Link) -> None:
        link.cut_up += [50_000, 100_000]
        shaky.write("a", noise(1 << 20))
        assert link.cut_up == []
        assert store.read("a") == noise(1 << 20)

    def test_parts_sent_before_are_not_sent_again(self, shaky: Store, store: Store, link: Link) -> None:
        with pytest.MonkeyPatch.context() as patch:
            send = shaky.client.upload_part

            def upload_part(**arguments: object) -> object:
                if arguments["PartNumber"] == 4:
                    link.cut_up += [1 << 20] * 3
                return send(**arguments)

            patch.setattr(shaky.client, "upload_part", upload_part)
            with pytest.raises(StoreUnreachableError):
                shaky.write("big", noise(4 * PART))
        assert store.head("big") is None
        link.cut_up.clear()
        link.up = 0
        shaky.write("big", noise(4 * PART))
        assert PART < link.up < 1.5 * PART
        assert store.read("big") == noise(4 * PART)

    def test_parts_of_other_content_are_left_alone_and_can_be_dropped(self, bucket: str) -> None:
        store = Store(bucket, "p", part_bytes=PART)
        begun = store.client.create_multipart_upload(Bucket=bucket, Key="p/big")["UploadId"]
        store.client.upload_part(Bucket=bucket, Key="p/big", UploadId=begun, PartNumber=1, Body=noise(PART, 9))
        store.write("big", noise(PART + 1))
        assert store.read("big") == noise(PART + 1)
        assert store.abort_unfinished("", datetime(2000, 1, 1, tzinfo=UTC)) == 0
        assert store.abort_unfinished("", datetime.now(UTC) + timedelta(days=1)) == 1
        assert "Uploads" not in store.client.list_multipart_uploads(Bucket=bucket)


class TestDirectories:
    FILES = {"config.json": b"{}", "deep/model.bin": noise(300_000), "deep/empty": b""}  # noqa: RUF012

    def test_are_stored_with_an_index(self, store: Store, tmp_path: Path) -> None:
        store.upload_directory(make(tmp_path / "d", self.FILES), "detectors/tiles/d1")
        keys = [one.key for one in store.list("detectors/tiles/d1")]
        assert sorted(keys) == sorted(
            ["detectors/tiles/d1.index.json", *(f"detectors/tiles/d1/{name}" for name in self.FILES)]
        )
        assert store.index_of("detectors/tiles/d1") == {
            name: hashlib.sha256(content).hexdigest() for name, content in self.FILES.items()
        }
        assert {name: store.read(f"detectors/tiles/d1/{name}") for name in self.FILES} == self.FILES

    def test_an_interrupted_upload_has_no_index_and_is_completed_by_the_next(
        self, shaky: Store, store: Store, link: Link, tmp_path: Path
    ) -> None:
        folder = make(tmp_path / "d", {"a": noise(300_000, 1), "b": noise(400_000, 2), "c": noise(400_000, 3)})
        link.cut_up += [350_000] * 3  # enough for the first file only
        with pytest.raises(StoreUnreachableError):
            shaky.upload_directory(folder, "d")
        assert [one.key for one in store.list("d")] == ["d/a"]
        assert store.index_of("d") is None
        link.cut_up.clear()
        link.up = 0
        shaky.upload_directory(folder, "d")
        assert 800_000 < link.up < 900_000
        link.up = 0
        shaky.upload_directory(folder, "d")
        assert link.up < 50_000
        assert store.index_of("d") == {name: sha256_file(folder / name) for name in ("a", "b", "c")}

    def test_other_content_is_never_replaced(self, store: Store, tmp_path: Path) -> None:
        store.upload_directory(make(tmp_path / "d", self.FILES), "d")
        other = make(tmp_path / "other", {**self.FILES, "config.json": b"[]"})
        with pytest.raises(StorageError, match=r"has other content than .*Nothing was replaced"):
            store.upload_directory(other, "d")
        fewer = make(tmp_path / "fewer", {"config.json": b"{}"})
        with pytest.raises(StorageError, match="deep/empty, deep/model.bin"):
            store.upload_directory(fewer, "d")
        assert store.read("d/config.json") == b"{}"

    def test_a_damaged_file_there_is_named_with_what_was_found_and_expected(self, store: Store, tmp_path: Path) -> None:
        folder = make(tmp_path / "d", self.FILES)
        store.upload_directory(folder, "d")
        overwrite(store, "d/deep/model.bin", b"cut", Metadata={"sha256": sha256_file(folder / "deep/model.bin")})
        with pytest.raises(DamagedObjectError, match=r"d/deep/model.bin has 3 bytes, expected 300000 bytes"):
            store.upload_directory(folder, "d")

    def test_a_damaged_index_is_named(self, store: Store, tmp_path: Path) -> None:
        store.write("d.index.json", b'{"files": 1}')
        with pytest.raises(DamagedObjectError, match=r"d\.index\.json is no index"):
            store.upload_directory(make(tmp_path / "d", self.FILES), "d")

    def test_deletion_leaves_nothing_and_not_the_neighbours(self, store: Store, tmp_path: Path) -> None:
        for name in ("d", "d2"):
            store.upload_directory(make(tmp_path / name, self.FILES), name)
        store.delete_directory("d")
        assert {one.key.split("/")[0].split(".")[0] for one in store.list("")} == {"d2"}
        assert store.index_of("d") is None


class TestRefusals:
    @pytest.fixture
    def refusing(self, store: Store) -> Iterator[ThreadingHTTPServer]:
        """A server that answers every request with the error a test wants."""

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, code = self.server.says  # type: ignore[attr-defined]
                body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No.</Message></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Type", "application/xml")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_PUT = do_HEAD = do_POST = answer

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            yield server
            server.shutdown()

    @pytest.mark.parametrize(
        ("status", "code", "complaint"),
        [
            (
                403,
                "AccessDenied",
                r"denies access to s3://.* Check AWS_ACCESS_KEY_ID .* need s3:GetObject, s3:PutObject",
            ),
            (403, "InvalidAccessKeyId", r"does not accept these credentials.*Correct AWS_ACCESS_KEY_ID"),
            (403, "SignatureDoesNotMatch", r"does not accept these credentials"),
            (400, "ExpiredToken", r"have expired"),
            (404, "NoSuchBucket", r"has no bucket s3://[\w-]+\. Create it, or correct CSFLOW_STORE"),
        ],
    )
    @pytest.mark.parametrize("call", ["write", "read", "list", "head"])
    def test_say_what_to_do(
        self, store: Store, refusing: ThreadingHTTPServer, call: str, status: int, code: str, complaint: str
    ) -> None:
        refusing.says = (status, code)  # type: ignore[attr-defined]
        there = Store(store.bucket, "x", endpoint_url=f"http://127.0.0.1:{refusing.server_port}", attempts=2)
        calls = {
            "write": lambda: there.write("k", b"v"),
            "read": lambda: there.read("k"),
            "list": lambda: list(there.list("")),
            "head": lambda: there.head("k"),
        }
        with pytest.raises(StorageError, match=complaint) as caught:
            calls[call]()
        assert not isinstance(caught.value, StoreUnreachableError)
        assert "testing" not in str(caught.value)

    def test_missing_bucket_of_a_real_server(self, store: Store) -> None:
        absent = Store("no-such-bucket-here", attempts=2)
        for call in (lambda: absent.write("k", b""), lambda: absent.head("k"), lambda: list(absent.list(""))):
            with pytest.raises(StorageError, match="has no bucket s3://no-such-bucket-here"):
                call()

    def test_refused_port(self, store: Store) -> None:
        address = f"http://127.0.0.1:{free_port('127.0.0.1')}"
        gone = Store(store.bucket, endpoint_url=address, attempts=2, pause=0.01)
        start = time.monotonic()
        with pytest.raises(StoreUnreachableError, match=rf"{address} does not answer.*Check AWS_ENDPOINT_URL"):
            gone.read("k")
        assert time.monotonic() - start < 5

    def test_busy_store_is_waited_for(self, store: Store, refusing: ThreadingHTTPServer) -> None:
        refusing.says = (503, "SlowDown")  # type: ignore[attr-defined]
        busy = Store(store.bucket, endpoint_url=f"http://127.0.0.1:{refusing.server_port}", attempts=2, pause=0.01)
        with pytest.raises(StoreUnreachableError, match=r"cannot answer now \(SlowDown\)"):
            busy.write("k", b"")

    def test_no_credentials(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        with pytest.raises(StorageError, match="There are no complete credentials for .*Set AWS_ACCESS_KEY_ID"):
            Store(store.bucket).read("k")


class TestEnvironment:
    def test_names_the_store(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CSFLOW_STORE", raising=False)
        assert Store.from_environment() is None
        monkeypatch.setenv("CSFLOW_STORE", "s3://plant/csflow/v1/")
        found = Store.from_environment()
        assert found is not None
        assert (found.bucket, found.prefix, found.uri("x")) == ("plant", "csflow/v1", "s3://plant/csflow/v1/x")
        monkeypatch.setenv("CSFLOW_STORE", "s3://plant")
        assert Store.from_environment() == Store("plant")

    @pytest.mark.parametrize("value", ["plant/x", "gs://plant", "s3://", "s3://Plant/x"])
    def test_that_names_none_is_refused(self, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        monkeypatch.setenv("CSFLOW_STORE", value)
        with pytest.raises(ConfigError, match="expected s3://BUCKET/PREFIX"):
            Store.from_environment()


def test_shared_features_are_found_one_by_one_and_in_listings(store: Store) -> None:
    tier = SharedFeatures(store)
    shas = [f"{number:02x}{'0' * 62}" for number in range(0, 200, 2)]
    for sha in shas[:5]:
        tier.put("space", sha, sha.encode())
    tier.put("other", shas[9], b"of another space")
    assert tier.held("space", shas) == set(shas[:5])
    assert tier.held("space", shas[3:12]) == set(shas[3:5])
    assert tier.held("space", []) == set()
    assert tier.get("space", shas[1]) == shas[1].encode()
    assert tier.get("space", shas[9]) is None
    assert store.head(key_of("space", shas[0])) is not None
