"""Encrypted connections: what may connect, how long a handshake may take, and certificates that are renewed."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from csflow.adapters.serving.connections import ConnectionLimits, GuardedProtocol
from csflow.adapters.serving.rest import RestServer
from csflow.adapters.serving.served import ServerOptions
from csflow.adapters.serving.server import open_door
from csflow.adapters.serving.tls import Certificate
from csflow.adapters.serving.tokens import Tokens
from csflow.errors import UsageError
from csflow.system.ports import bind
from tests.csflow.adapters.serving.command import HOST, Command, call, failed, started
from tests.csflow.adapters.serving.test_authentication import hashed


def certified(folder: Path, number: int, *, password: bytes | None = None) -> tuple[Path, Path]:
    """Write a certificate of this machine, signed by itself, and its key over those that are there."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"server {number}")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(number)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    folder.mkdir(exist_ok=True)
    for path, content in (
        (folder / "cert.pem", made.public_bytes(encoding)),
        (folder / "key.pem", key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, encryption)),
    ):
        (folder / "new").write_bytes(content)
        (folder / "new").replace(path)
    return folder / "cert.pem", folder / "key.pem"


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


def serial_of(port: int) -> int:
    """The number of the certificate that a server shows, whoever signed it."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((HOST, port), timeout=10) as plain, context.wrap_socket(plain) as wrapped:
        return x509.load_der_x509_certificate(wrapped.getpeercert(binary_form=True) or b"").serial_number


# ------------------------------------------------------------------------------------------------ files


def test_wrong_files_are_refused_with_what_to_do(tmp_path: Path) -> None:
    certificate, key = certified(tmp_path / "one", 1)
    _, other_key = certified(tmp_path / "other", 2)
    _, locked = certified(tmp_path / "locked", 3, password=b"secret")
    empty = tmp_path / "empty"
    empty.touch()
    for cert_file, key_file, reason in (
        (certificate, other_key, "not a certificate and its private key"),
        (key, certificate, "not a certificate and its private key"),
        (empty, key, "not a certificate and its private key"),
        (certificate, empty, "not a certificate and its private key"),
        (tmp_path / "none", key, "none: No such file"),
        (certificate, tmp_path / "none", "none: No such file"),
        (certificate, tmp_path, "Is a directory"),
        (tmp_path / "locked/cert.pem", locked, "openssl pkey"),
    ):
        with pytest.raises(UsageError, match=reason):
            Certificate(cert_file, key_file)
    for given in ((certificate, None), (None, key)):
        with pytest.raises(UsageError, match="both files"):
            Certificate.configured(*given)
    assert Certificate.configured(None, None) is None


def test_the_server_refuses_to_start_with_wrong_files(tmp_path: Path) -> None:
    certificate, _ = certified(tmp_path / "one", 1)
    _, other_key = certified(tmp_path / "other", 2)
    model = ("--model", f"tiles={tmp_path}")
    assert "not a certificate and its private key" in failed(
        *model, f"--tls-cert={certificate}", f"--tls-key={other_key}"
    )
    assert "both files" in failed(*model, f"--tls-cert={certificate}")


def test_an_open_door_is_warned_about(tmp_path: Path) -> None:
    certificate = Certificate(*certified(tmp_path, 1))
    tokens = Tokens(None, hashed("token"))
    with bind("127.0.0.1", 0) as near, bind("0.0.0.0", 0) as far, socket.socket(socket.AF_UNIX) as local:
        assert open_door([near, local], ServerOptions()) == ""
        assert open_door([near, far], ServerOptions(tokens=tokens, certificate=certificate)) == ""
        both = open_door([near, far], ServerOptions())
        assert "0.0.0.0" in both
        assert "127.0.0.1" not in both
        assert "--tokens FILE" in both
        assert "--tls-cert FILE" in both
        assert "--tls-cert" not in open_door([far], ServerOptions(certificate=certificate))
        assert "--tokens" not in open_door([far], ServerOptions(tokens=tokens))


# ------------------------------------------------------------------------------------------------ connections


class Short(GuardedProtocol):
    limits = ConnectionLimits(
        head_bytes=4096, connections=40, head_seconds=1.5, idle_seconds=1.0, pause_seconds=0.7, body_seconds=2.0
    )


async def hello(scope: object, receive: object, send: Callable[[dict[str, object]], object]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})  # type: ignore[misc]
    await send({"type": "http.response.body", "body": b"hi"})  # type: ignore[misc]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Port and certificate of a REST server in a thread, with short limits."""
    certificate, key = certified(tmp_path_factory.mktemp("short"), 1)
    listener = bind(HOST, 0)
    server = RestServer(hello, Certificate(certificate, key).context, Short)  # type: ignore[arg-type]
    thread = threading.Thread(target=lambda: asyncio.run(server.serve_on([listener])), daemon=True)
    port = listener.getsockname()[1]
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield port, certificate
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive(), "no client holds it up"


def seconds_until_closed(connection: socket.socket) -> float:
    began = time.monotonic()
    connection.settimeout(10)
    with suppress(ConnectionResetError, ssl.SSLError):
        while connection.recv(4096):
            pass
    return time.monotonic() - began


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01", b"\x16"], ids=["nothing", "half a hello", "a byte"])
def test_a_handshake_that_is_never_finished_is_let_go(short: tuple[int, Path], sent: bytes) -> None:
    with socket.create_connection((HOST, short[0])) as connection:
        connection.sendall(sent)
        assert 0.7 < seconds_until_closed(connection) < 4.0


def test_handshakes_that_are_not_finished_are_bounded(short: tuple[int, Path]) -> None:
    port, certificate = short
    time.sleep(1.7)  # those of other tests are over
    several = [socket.create_connection((HOST, port)) for _ in range(60)]
    taken = [seconds_until_closed(connection) for connection in reversed(several)]
    assert taken[0] < 0.8, "the last ones are dropped at once"
    time.sleep(1.7)
    context = trusting(certificate)
    for _ in range(100):  # those that succeed do not count any more
        context.wrap_socket(socket.create_connection((HOST, port)), server_hostname=HOST).close()


def test_http_without_encryption_is_refused_at_once(short: tuple[int, Path]) -> None:
    with socket.create_connection((HOST, short[0])) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert seconds_until_closed(connection) < 0.5


def test_limits_hold_within_the_encryption(short: tuple[int, Path]) -> None:
    port, certificate = short

    def connected() -> ssl.SSLSocket:
        return trusting(certificate).wrap_socket(socket.create_connection((HOST, port)), server_hostname=HOST)

    with connected() as silent:
        assert 0.5 < seconds_until_closed(silent) < 4.0
    with connected() as half:
        half.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nA: ")
        assert half.recv(4096).startswith(b"HTTP/1.1 408 ")
    with connected() as large:
        large.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 5000 + b"\r\n\r\n")
        assert large.recv(4096).startswith(b"HTTP/1.1 431 ")
    with connected() as good:
        good.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert good.recv(4096).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(("version", "works"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_old_versions_of_tls_are_refused(short: tuple[int, Path], version: str, works: bool) -> None:
    port, certificate = short
    context = trusting(certificate)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion[version]
    done = False
    with suppress(ssl.SSLError), socket.create_connection((HOST, port)) as plain:
        done = context.wrap_socket(plain, server_hostname=HOST).version() is not None
    assert done == works


def test_a_client_that_does_not_say_goodbye_does_not_hold_the_end_up(tmp_path: Path) -> None:
    certificate, key = certified(tmp_path, 1)
    listener = bind(HOST, 0)
    server = RestServer(hello, Certificate(certificate, key).context)  # type: ignore[arg-type]
    thread = threading.Thread(target=lambda: asyncio.run(server.serve_on([listener])), daemon=True)
    port = listener.getsockname()[1]
    thread.start()
    while not server.started:
        time.sleep(0.01)
    idle = trusting(certificate).wrap_socket(socket.create_connection((HOST, port)), server_hostname=HOST)
    half = socket.create_connection((HOST, port))
    time.sleep(0.3)
    server.should_exit = True
    began = time.monotonic()
    thread.join(20)
    assert time.monotonic() - began < 6.0
    idle.close()
    half.close()


# ------------------------------------------------------------------------------------------------ the real command


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificate")
    certified(folder, 1)
    return folder


@pytest.fixture(scope="module")
def server(
    make_detector: Callable[..., Path], files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Command]:
    folder = tmp_path_factory.mktemp("server")
    options = (f"--tls-cert={files / 'cert.pem'}", f"--tls-key={files / 'key.pem'}", "--max-memory=1Gi")
    model = ("--model", f"tiles={make_detector('tiles')}")
    with started(folder, *model, *options, context=trusting(files / "cert.pem")) as running:
        yield running


def test_rest_and_grpc_are_encrypted(server: Command, files: Path) -> None:
    assert server.ask("GET", "/v2/models/tiles/ready").json == {"name": "tiles", "ready": True}
    with server.channel((files / "cert.pem").read_bytes()) as channel:
        assert call(channel, "ServerReady").ready
    with server.channel() as plain, pytest.raises(grpc.RpcError):
        call(plain, "ServerReady")


def test_a_page_of_another_site_reads_nothing_and_nothing_is_described(server: Command) -> None:
    asked = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    preflight = server.ask("OPTIONS", "/v1/models/tiles:predict", headers=asked)
    answered = server.ask("POST", "/v1/models/tiles:predict", {"instances": []}, asked)
    assert (preflight.status, answered.status) == (405, 400)
    for answer in (preflight, answered):
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
    assert [server.ask("GET", path).status for path in ("/docs", "/openapi.json", "/redoc")] == [404] * 3


@pytest.mark.slow
def test_a_handshake_with_grpc_ends_too(server: Command) -> None:
    with socket.create_connection((HOST, server.grpc_port)) as connection:
        connection.settimeout(20)
        began = time.monotonic()
        with suppress(ConnectionResetError):
            assert connection.recv(100) == b""
        assert time.monotonic() - began < 15.0


def test_a_renewed_certificate_is_used_without_a_restart(server: Command, files: Path) -> None:
    with server.channel((files / "cert.pem").read_bytes()) as before:
        assert call(before, "ServerReady").ready
        kept = server.connect()
        kept.request("GET", "/v2/health/live")
        assert kept.getresponse().read() == b'{"live":true}'
        certified(files, 2)
        time.sleep(1.1)
        assert serial_of(server.port) == 2
        assert serial_of(server.grpc_port) == 2
        kept.request("GET", "/v2/health/live")
        assert kept.getresponse().read() == b'{"live":true}', "connections from before go on"
        assert call(before, "ServerReady").ready
    (files / "cert.pem").write_text("damaged")
    server.process.send_signal(signal.SIGHUP)
    assert server.logged("The certificate before stays.")
    assert [serial_of(server.port), serial_of(server.grpc_port)] == [2, 2]
    certified(files, 3)
    server.process.send_signal(signal.SIGHUP)
    time.sleep(1.1)
    assert [serial_of(server.port), serial_of(server.grpc_port)] == [3, 3]
    with server.channel((files / "cert.pem").read_bytes()) as channel:
        assert call(channel, "ServerReady").ready
    assert server.log.read_text().count("Traceback") == 0
