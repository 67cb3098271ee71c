"""Tokens: how they are kept, and that nothing but probes is answered without one."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from csflow.adapters.serving.tokens import VARIABLE, Tokens, new_token
from csflow.cli.app import app
from csflow.errors import UsageError
from tests.csflow.adapters.serving.command import HOST, Command, call, failed, started

ONE, OTHER, LISTED, LATER = "one-token", "other-token", "listed-token", "later-token"


def hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def kept(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens") / "tokens"


@pytest.fixture(scope="module")
def server(
    make_detector: Callable[..., Path], file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Command]:
    kept(file, "# presses", f"press-1:{hashed(ONE)}  # west", f"press-2: {hashed(OTHER).upper()}", "")
    folder = tmp_path_factory.mktemp("server")
    options = ("--model", f"tiles={make_detector('tiles')}", f"--tokens={file}", "--docs")
    with started(folder, *options, environment={VARIABLE: f"{hashed(LISTED)},{hashed('unused')}"}) as running:
        yield running


def test_a_made_token_is_known_by_its_line(tmp_path: Path) -> None:
    (token, line), (again, _) = new_token("press-3"), new_token("press-3")
    assert token != again
    assert line == f"press-3:{hashed(token)}"
    tokens = Tokens(kept(tmp_path / "tokens", line))
    assert tokens.know(token.encode())
    assert not tokens.know(again.encode())
    assert not tokens.know(hashed(token).encode()), "the file gives nobody a token"
    assert not tokens.know(b"")


def test_the_command_makes_a_token() -> None:
    text = CliRunner().invoke(app, ["token", "press-3"]).output
    token, line = (each.strip() for each in text.splitlines() if each.startswith("  "))
    assert line == f"press-3:{hashed(token)}"
    values = json.loads(CliRunner().invoke(app, ["token", "--json"]).output)
    assert values["line"] == hashed(values["token"])


@pytest.mark.parametrize("name", ["a b", "a:b", "a#b", "é", "a" * 65, "a\n"])
def test_a_name_that_would_break_the_file_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="other characters"):
        new_token(name)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "no tokens"),
        (["# nobody", ""], "no tokens"),
        ([hashed(ONE), ONE], "entry 2 is no hash"),
        ([hashed(ONE)[:-1]], "entry 1 is no hash"),
        ([f"a b:{hashed(ONE)}"], "entry 1 is no hash"),
        ([f"{hashed(ONE)} {hashed(OTHER)}"], "entry 1 is no hash"),
    ],
)
def test_a_wrong_file_is_named_but_not_quoted(tmp_path: Path, lines: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        Tokens(kept(tmp_path / "tokens", *lines))
    assert ONE not in str(caught.value)
    assert "csflow token" in str(caught.value)


def test_a_file_that_others_may_read_or_that_is_missing_is_refused(tmp_path: Path) -> None:
    file = kept(tmp_path / "tokens", hashed(ONE))
    for mode in (0o644, 0o602):
        file.chmod(mode)
        with pytest.raises(UsageError, match=f"chmod 600 {re.escape(str(file))}"):
            Tokens(file)
    with pytest.raises(UsageError, match="No such file"):
        Tokens(tmp_path / "none")
    with pytest.raises(UsageError, match="Is a directory"):
        Tokens(tmp_path)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        Tokens(file)


def test_the_environment_gives_tokens_and_an_empty_variable_does_not_open_the_door() -> None:
    assert Tokens.configured(None, {}) is None
    tokens = Tokens.configured(None, {VARIABLE: f" {hashed(ONE)}\n{hashed(OTHER)}, a:{hashed(LISTED)} "})
    assert tokens is not None
    assert all(tokens.know(each.encode()) for each in (ONE, OTHER, LISTED))
    for empty in ("", " , "):
        with pytest.raises(UsageError, match="no tokens"):
            Tokens.configured(None, {VARIABLE: empty})


def test_the_server_refuses_to_start_without_the_tokens_it_was_told_to_want(tmp_path: Path) -> None:
    file = kept(tmp_path / "tokens", hashed(ONE))
    file.chmod(0o644)
    directory = tmp_path / "detector"
    assert "chmod 600" in failed("--model", f"tiles={directory}", f"--tokens={file}")
    assert "has no tokens" in failed("--model", f"tiles={directory}", environment={VARIABLE: ""})


OPEN = ["/", "/v2/health/live", "/v2/health/ready"]
CLOSED = [
    *("/metrics", "/v1/models", "/v1/models/tiles", "/v2", "/v2/models", "/v2/models/tiles", "/v2/models/tiles/ready"),
    *("/docs", "/openapi.json", "/no/such/path"),
    *("/v2/health/live/", "//", "/v2/health/live/../ready", "/V2/health/live", "/v2/models/tiles/../../health/live"),
]


def test_probes_are_open_and_everything_else_is_closed(server: Command) -> None:
    assert {path: server.ask("GET", path).status for path in OPEN} == dict.fromkeys(OPEN, 200)
    for path in CLOSED:
        answer = server.ask("GET", path)
        assert (path, answer.status, answer.headers["www-authenticate"]) == (path, 401, "Bearer")
        assert "Authorization: Bearer TOKEN" in answer.json["error"]
        assert answer.headers["x-request-id"]
    for method, path in (("POST", "/v1/models/tiles:predict"), ("POST", "/v2/models/tiles/infer"), ("OPTIONS", "/v2")):
        assert server.ask(method, path).status == 401


@pytest.mark.parametrize("token", [ONE, OTHER, LISTED])
def test_each_token_opens_everything(server: Command, token: str) -> None:
    for path in ("/metrics", "/v2/models/tiles/ready", "/docs"):
        assert server.ask("GET", path, headers=bearer(token)).status == 200
    assert server.ask("POST", "/v1/models/tiles:predict", {"instances": []}, bearer(token)).status == 400


@pytest.mark.parametrize(
    "value",
    [f"Bearer {ONE}x", f"Bearer x{ONE}", "Bearer ", "Bearer", ONE, f"Basic {ONE}", f"Bearer {hashed(ONE)}", "",
     f"Bearer {ONE} {OTHER}", f"Bearer {ONE},{OTHER}", "Bearer " + "a" * 9000, "Bearer \xe9"],
)  # fmt: skip
def test_anything_but_a_token_is_refused(server: Command, value: str) -> None:
    answer = server.ask("GET", "/v2", headers={"Authorization": value})
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert ONE not in answer.json["error"]


def test_the_name_of_the_scheme_has_no_case_and_a_second_header_is_refused(server: Command) -> None:
    assert server.ask("GET", "/v2", headers={"authorization": f"bEARER  {ONE}"}).status == 200
    connection = server.connect()
    connection.putrequest("GET", "/v2")
    for token in (ONE, OTHER):
        connection.putheader("Authorization", f"Bearer {token}")
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


def test_a_request_without_token_is_refused_before_its_body(server: Command) -> None:
    with socket.create_connection((HOST, server.port), timeout=5) as connection:
        head = "POST /v1/models/tiles:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n"
        connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 401 ")


def code_of(server: Command, name: str, message: object = None, *metadata: tuple[str, str]) -> object:
    """The status of a call; None if its answer does not name the request."""
    with server.channel() as channel:
        try:
            call(channel, name, message, metadata=metadata)
        except grpc.RpcError as error:
            return error.code() if "x-request-id" in dict(error.trailing_metadata() or ()) else None
    return grpc.StatusCode.OK


def test_grpc_calls_need_a_token_too(server: Command) -> None:
    unauthenticated, ok = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.OK
    for name in ("ServerLive", "ServerReady"):
        assert code_of(server, name) == ok
    for name in ("ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer", "RepositoryModelUnload", "NoSuchCall"):
        assert (name, code_of(server, name)) == (name, unauthenticated)
    with server.channel() as channel, pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
        channel.unary_unary("/another.Service/ServerLive")(b"", timeout=20)
    for given in (f"Bearer {ONE}x", ONE, ""):
        assert code_of(server, "ServerMetadata", None, ("authorization", given)) == unauthenticated
    assert code_of(server, "ServerMetadata", None, ("authorization", f"Bearer {ONE}")) == ok
    twice = (("authorization", f"Bearer {ONE}"), ("authorization", f"Bearer {OTHER}"))
    assert code_of(server, "ServerMetadata", None, *twice) == unauthenticated


def test_grpc_refuses_before_a_message_is_parsed(server: Command) -> None:
    """What is no message at all would otherwise be an internal error."""
    garbage = b"\xff" * 100_000
    assert code_of(server, "ModelInfer", garbage) == grpc.StatusCode.UNAUTHENTICATED
    assert code_of(server, "ServerLive", b"") == grpc.StatusCode.OK


def count(server: Command, labels: str) -> float:
    text = server.ask("GET", "/metrics", headers=bearer(ONE)).body.decode()
    found = re.search(rf"^csflow_responses_total{{{labels}}} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_refusals_are_counted_and_logged(server: Command) -> None:
    rest, rpc = 'protocol="rest",status="401"', 'protocol="grpc",status="UNAUTHENTICATED"'
    before = count(server, rest), count(server, rpc)
    server.ask(
        "POST", "/v1/models/tiles:predict", {"instances": ["secret"]}, bearer("wrong") | {"X-Request-ID": "r-17"}
    )
    code_of(server, "ModelInfer")
    assert (count(server, rest), count(server, rpc)) == (before[0] + 1, before[1] + 1)
    assert server.logged('"id": "r-17"')
    log = server.log.read_text()
    assert "wrong" not in log
    assert ONE not in log
    assert "Traceback" not in log


def test_a_page_of_another_site_reads_nothing(server: Command) -> None:
    asked = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    preflight = server.ask("OPTIONS", "/v1/models/tiles:predict", headers=asked)
    allowed = server.ask("OPTIONS", "/v1/models/tiles:predict", headers=asked | bearer(ONE))
    answered = server.ask("GET", "/v2", headers=asked | bearer(ONE))
    assert (preflight.status, allowed.status, answered.status) == (401, 405, 200)
    for answer in (preflight, allowed, answered):
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_the_documentation_describes_all_routes_and_loads_nothing(server: Command) -> None:
    described = server.ask("GET", "/openapi.json", headers=bearer(ONE)).json
    assert described["security"] == [{"token": []}]
    body = described["paths"]["/v1/models/{name}:predict"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["required"] == ["instances"]
    page = server.ask("GET", "/docs", headers=bearer(ONE)).body.decode()
    assert all(path in page for path in described["paths"])
    assert "<script" not in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_a_changed_file_counts_without_a_restart(server: Command, file: Path) -> None:
    before = file.read_text()
    kept(file, *before.splitlines(), f"late:{hashed(LATER)}")
    assert arrives(server, LATER, 200)
    kept(file, "this is no hash")
    time.sleep(1.1)
    assert arrives(server, LATER, 200)
    assert server.logged(f"ERROR {file}: entry 1 is no hash of a token")
    assert server.logged("The tokens before stay.")
    kept(file, before)
    server.process.send_signal(signal.SIGHUP)
    assert arrives(server, LATER, 401)
    assert server.ask("GET", "/v2", headers=bearer(ONE)).status == 200
    assert server.ask("GET", "/v2", headers=bearer(LISTED)).status == 200


def arrives(server: Command, token: str, status: int) -> bool:
    """True once a token has this status, which takes little more than a second."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if server.ask("GET", "/v2", headers=bearer(token)).status == status:
            return True
        time.sleep(0.1)
    return False
