"""A small Kubeflow Pipelines server in memory: it speaks the part of v2beta1 that csflow uses, over HTTP.

Where the API's OpenAPI description is to be found (``CSFLOW_SCHEMAS``, or ``../shared/schemas`` beside the checkout),
every request and every answer is validated against it: unknown paths, query parameters and fields are violations.
"""

from __future__ import annotations

import copy
import email.parser
import email.policy
import itertools
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import jsonschema
import yaml

Json = dict[str, Any]
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
_BASE = "/apis/v2beta1"


def description() -> Json | None:
    """The API's OpenAPI description, or ``None`` if it is not here."""
    root = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("CSFLOW_SCHEMAS") or root.parent / "shared" / "schemas")
    file = folder / "kfp_api_v2beta1.swagger.json"
    return json.loads(file.read_text()) if file.is_file() else None


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Fault:
    """Something that goes wrong.

    Attributes:
        method: HTTP method it happens to.
        path: Regular expression of the path it happens to.
        status: What is answered; 0 closes the connection without an answer.
        times: How often.
        after: Whether the request takes effect all the same.
    """

    method: str
    path: str
    status: int
    times: int = 1
    after: bool = False
    message: str = "injected"


class Contract:
    """The description as something to check requests and answers with."""

    def __init__(self, swagger: Json) -> None:
        self.paths: list[tuple[str, re.Pattern[str], Json]] = []
        for template, methods in swagger["paths"].items():
            pattern = re.compile(re.sub(r"\\\{[^}]+\\\}", "[^/:]+", re.escape(template)))
            self.paths += [(method.upper(), pattern, about) for method, about in methods.items()]
        # The most specific path first: /pipelines/upload is no /pipelines/{pipeline_id}.
        self.paths.sort(key=lambda entry: entry[1].pattern.count("[^/:]+"))
        self.definitions = copy.deepcopy(swagger["definitions"])
        for schema in self.definitions.values():
            self._close(schema)

    def _close(self, schema: Json) -> None:
        """Refuse fields that are not described; swagger's ``$ref`` has neighbours, which JSON schema ignores."""
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
            for part in schema["properties"].values():
                self._close(part)

    def operation(self, method: str, path: str) -> Json | None:
        return next((about for verb, pattern, about in self.paths if verb == method and pattern.fullmatch(path)), None)

    def wrong(self, value: Any, schema: Json) -> list[str]:
        full = {**schema, "definitions": self.definitions}
        return [f"{error.json_path}: {error.message}" for error in jsonschema.Draft4Validator(full).iter_errors(value)]

    def wrong_request(self, method: str, path: str, query: Json, body: Any) -> list[str]:
        operation = self.operation(method, path)
        if operation is None:
            return [f"no such operation: {method} {path}"]
        described = operation.get("parameters", [])
        names = {about["name"] for about in described if about["in"] == "query"}
        problems = [f"unknown query parameter {name}" for name in query if name not in names]
        schema = next((about["schema"] for about in described if about["in"] == "body"), None)
        if schema is not None:
            problems += self.wrong(body, schema)
        elif isinstance(body, dict):
            parts = {about["name"] for about in described if about["in"] == "formData"}
            problems += [f"unknown part {name}" for name in body if name not in parts]
        return [f"{method} {path}: {problem}" for problem in problems]

    def wrong_answer(self, method: str, path: str, status: int, body: Json) -> list[str]:
        operation = self.operation(method, path)
        if operation is None:
            return []
        answers = operation["responses"]
        schema = answers.get(str(status), answers.get("default", {})).get("schema", {})
        return [f"answer of {method} {path}: {problem}" for problem in self.wrong(body, schema)]


@dataclass
class KfpServer:
    """The server's state and its knobs.

    Attributes:
        url: Where it listens.
        multi_user: Whether it keeps namespaces apart.
        token: What it wants as bearer token; anything if empty.
        page_limit: The most entries it puts on a page.
        faults: What goes wrong next.
        requests: ``METHOD path`` of everything asked.
        violations: Of the API's description.
        enabled: After every request the names of the recurring runs that would start runs.
    """

    url: str = ""
    multi_user: bool = False
    token: str = ""
    page_limit: int = 2
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    enabled: list[tuple[str, ...]] = field(default_factory=list)
    pipelines: dict[str, Json] = field(default_factory=dict)
    versions: dict[str, Json] = field(default_factory=dict)
    packages: dict[str, list[Any]] = field(default_factory=dict)
    experiments: dict[str, Json] = field(default_factory=dict)
    runs: dict[str, Json] = field(default_factory=dict)
    recurring: dict[str, Json] = field(default_factory=dict)
    states: list[str] = field(default_factory=lambda: ["PENDING"])

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        swagger = description()
        self.contract = Contract(swagger) if swagger else None

    def handle(self, method: str, target: str, headers: Any, raw: bytes) -> tuple[int, Json | str] | None:
        """One request: status and body, or ``None`` to hang up."""
        parts = urlsplit(target)
        path, query = unquote(parts.path), dict(parse_qsl(parts.query, keep_blank_values=True))
        with self._lock:
            self.requests.append(f"{method} {path}")
            fault = next((each for each in self.faults if each.method == method and re.search(each.path, path)), None)
            if fault is not None:
                fault.times -= 1
                if fault.times == 0:
                    self.faults.remove(fault)
                if not fault.after:
                    return _failure(fault)
            status, answer = self._answer(method, path, query, headers, raw)
            self.enabled.append(tuple(sorted(each["display_name"] for each in self._active())))
            return (status, answer) if fault is None else _failure(fault)

    def _active(self) -> Iterator[Json]:
        return (each for each in self.recurring.values() if each["status"] == "ENABLED")

    def _answer(self, method: str, path: str, query: Json, headers: Any, raw: bytes) -> tuple[int, Json]:
        body = _body(headers, raw)
        if self.contract is not None:
            self.violations += self.contract.wrong_request(method, path, query, body)
        try:
            if self.token and headers.get("authorization") != f"Bearer {self.token}":
                raise Refused(401, "no valid token")
            answer, status = self._dispatch(method, path.removeprefix(_BASE), query, body), 200
        except Refused as refusal:
            answer, status = {"code": 2, "message": str(refusal), "details": []}, refusal.status
        if self.contract is not None:
            self.violations += self.contract.wrong_answer(method, path, status, answer)
        return status, answer

    def _dispatch(self, method: str, path: str, query: Json, body: Any) -> Json:
        match (method, path.strip("/").replace(":", "/").split("/")):
            case "GET", ["healthz"]:
                return {"multi_user": self.multi_user}
            case "GET", ["pipelines", "names", name]:
                return self._only(self.pipelines, "name", name)
            case "POST", ["pipelines"]:
                self._unique(self.pipelines, "name", body["name"])
                return self._add(self.pipelines, "pipeline_id", body)
            case "GET", ["pipelines", pipeline, "versions"]:
                found = {key: each for key, each in self.versions.items() if each["pipeline_id"] == pipeline}
                return self._page(found, "pipeline_versions", query)
            case "POST", ["pipelines", "upload_version"]:
                return self._upload(query, body)
            case "GET", ["experiments"]:
                return self._page(self.experiments, "experiments", query)
            case "POST", ["experiments"]:
                self._unique(self.experiments, "display_name", body["display_name"])
                self._namespaced(body)
                return self._add(self.experiments, "experiment_id", body)
            case "GET", ["runs"]:
                found = {k: each for k, each in self.runs.items() if each["experiment_id"] == query["experiment_id"]}
                return self._page(found, "runs", query)
            case "POST", ["runs"]:
                self._refers(body)
                return self._add(self.runs, "run_id", body | {"state": "PENDING"})
            case "GET", ["runs", run]:
                known = self._known(self.runs, run)
                known["state"] = self.states.pop(0) if len(self.states) > 1 else self.states[0]
                return known
            case "GET", ["recurringruns"]:
                self._namespaced(query)
                return self._page(self.recurring, "recurringRuns", query)
            case "POST", ["recurringruns"]:
                return self._schedule(body)
            case "POST", ["recurringruns", run, ("enable" | "disable") as verb]:
                self._known(self.recurring, run)["status"] = f"{verb.upper()}D"
                return {}
            case "DELETE", ["recurringruns", run]:
                self._known(self.recurring, run)
                del self.recurring[run]
                return {}
        raise Refused(404, f"no such operation: {method} {path}")

    def _add(self, kind: dict[str, Json], key: str, body: Json) -> Json:
        number = next(self._numbers)
        made = body | {key: f"id-{number}", "created_at": f"{_EPOCH + timedelta(minutes=number):%Y-%m-%dT%H:%M:%SZ}"}
        kind[made[key]] = made
        return made

    def _known(self, kind: dict[str, Json], key: str) -> Json:
        if key not in kind:
            raise Refused(404, f"{key} not found")
        return kind[key]

    def _only(self, kind: dict[str, Json], key: str, value: str) -> Json:
        found = [each for each in kind.values() if each.get(key) == value]
        if not found:
            raise Refused(404, f"{value} not found")
        return found[0]

    def _unique(self, kind: dict[str, Json], key: str, value: str) -> None:
        if any(each.get(key) == value for each in kind.values()):
            raise Refused(409, f"{value} already exists")

    def _namespaced(self, about: Json) -> None:
        if self.multi_user != bool(about.get("namespace")):
            raise Refused(400, "a namespace where there is one user only, or none where there are several")

    def _page(self, kind: dict[str, Json], name: str, query: Json) -> Json:
        entries = list(kind.values())
        for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
            assert predicate["operation"] in (1, "EQUALS")
            wanted = predicate.get("stringValue", predicate.get("string_value"))
            entries = [each for each in entries if each.get(predicate["key"]) == wanted]
        if query.get("sort_by", "").endswith(" desc"):
            entries.reverse()
        start = int(query.get("page_token") or 0)
        end = start + min(self.page_limit, int(query.get("page_size") or 20))
        more = {"next_page_token": str(end)} if end < len(entries) else {}
        # As protobuf does it, an empty list is no field at all.
        return ({name: entries[start:end]} if entries[start:end] else {}) | {"total_size": len(entries)} | more

    def _upload(self, query: Json, body: Any) -> Json:
        pipeline = self._known(self.pipelines, query["pipelineid"])
        same = {key: each for key, each in self.versions.items() if each["pipeline_id"] == pipeline["pipeline_id"]}
        self._unique(same, "name", query["name"])
        documents = list(yaml.safe_load_all(body["uploadfile"]))
        if not documents or "pipelineInfo" not in documents[0]:
            raise Refused(400, "no pipeline")
        about = {"pipeline_id": pipeline["pipeline_id"], "name": query["name"], "display_name": query["name"]}
        made = self._add(self.versions, "pipeline_version_id", about)
        self.packages[made["pipeline_version_id"]] = documents
        return made

    def _refers(self, body: Json) -> None:
        self._known(self.experiments, body["experiment_id"])
        reference = body["pipeline_version_reference"]
        self._known(self.pipelines, reference["pipeline_id"])
        self._known(self.versions, reference["pipeline_version_id"])

    def _schedule(self, body: Json) -> Json:
        self._refers(body)
        if not 1 <= int(body.get("max_concurrency", 0)) <= 10:
            raise Refused(400, "max_concurrency must be between 1 and 10")
        if len(body["trigger"]["cron_schedule"]["cron"].split()) != 6:
            raise Refused(400, "cron must have six fields")
        status = "ENABLED" if body["mode"] == "ENABLE" else "DISABLED"
        return self._add(self.recurring, "recurring_run_id", body | {"status": status})


def _failure(fault: Fault) -> tuple[int, Json] | None:
    return (fault.status, {"code": 13, "message": fault.message, "details": []}) if fault.status else None


def _body(headers: Any, raw: bytes) -> Any:
    kind = headers.get("content-type", "")
    if kind.startswith("multipart/form-data"):
        parser = email.parser.BytesParser(policy=email.policy.HTTP)
        message = parser.parsebytes(f"content-type: {kind}\r\n\r\n".encode() + raw)
        return {
            part.get_param("name", header="content-disposition"): part.get_payload(decode=True).decode()
            for part in message.iter_parts()
        }
    return json.loads(raw) if raw else None


@contextmanager
def running(**knobs: Any) -> Iterator[KfpServer]:
    """A server on a free port of the loopback address."""
    state = KfpServer(**knobs)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            answer = state.handle(self.command, self.path, self.headers, raw)
            if answer is None:
                self.close_connection = True
                return
            status, body = answer
            content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "text/html" if isinstance(body, str) else "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = do_PATCH = _serve

        def log_message(self, format: str, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, args=(0.05,))
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    try:
        yield state
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()
