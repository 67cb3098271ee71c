"""A small API server that speaks the Kubernetes REST paths csflow uses, with KServe's controller behind it.

Bodies are checked against KServe's own CRD where it is at hand. Pods are entries in a table that become ready at
once, or never; their servers are counters in memory, or real ones on the loopback address.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Document = dict[str, Any]

TOKEN = "testing"
NAMESPACE = "factory"
SCHEMAS = Path(os.environ.get("CSFLOW_SCHEMAS") or Path(__file__).resolve().parents[3] / "shared" / "schemas")
GROUPS = {"inferenceservices": "serving.kserve.io", "leases": "coordination.k8s.io", "pods": "",
          "httproutes": "gateway.networking.k8s.io"}  # fmt: skip
VERBS = {"GET": "get", "PATCH": "patch", "POST": "create", "PUT": "update", "DELETE": "delete"}


class Refused(Exception):
    """An answer with a Status object."""

    def __init__(self, status: int, message: str, **details: object) -> None:
        super().__init__(message)
        self.status, self.message, self.details = status, message, details


@dataclass
class Cluster:
    """What the cluster is like and what it holds; tests read and change it.

    Attributes:
        canaries: Whether this KServe knows ``spec.canary``.
        prunes: Whether unknown fields are dropped without a word, as old API servers do.
        gateway: Whether requests come through the Gateway API.
        denied: Verbs and resources the account may not use.
        webhook: What an admission webhook says against InferenceServices; empty to let them pass.
        broken: Digests (as in labels) whose pods never get ready, with the reason.
        counts: Requests answered and failed, by digest.
        servers: Real servers, by digest.
        history: ``storageUri`` and shares after each change of an InferenceService.
        log: Every request: method and path.
    """

    canaries: bool = True
    prunes: bool = False
    gateway: bool = True
    kserve: bool = True
    denied: set[tuple[str, str]] = field(default_factory=set)
    webhook: str = ""
    broken: dict[str, str] = field(default_factory=dict)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    servers: dict[str, str] = field(default_factory=dict)
    objects: dict[tuple[str, str], Document] = field(default_factory=dict)
    owners: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    revisions: dict[str, list[Document]] = field(default_factory=dict)
    history: list[dict[str, int]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    version: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def service(self, name: str = "tiles") -> Document:
        """A line's InferenceService."""
        return self.objects["inferenceservices", name]

    def pods(self) -> dict[str, Document]:
        """All pods by name."""
        return {name: pod for (kind, name), pod in self.objects.items() if kind == "pods"}

    def next_version(self) -> str:
        self.version += 1
        return str(self.version)

    # --- requests ----------------------------------------------------------------------------------------------
    def answer(self, method: str, path: str, query: dict[str, str], body: Document | None) -> Any:
        match = re.fullmatch(r"/(?:api|apis/([^/]+))/[^/]+/namespaces/([^/]+)/([^/]+)(?:/([^/]+))?(?:/(.*))?", path)
        if match is None or match[2] != NAMESPACE or GROUPS.get(match[3]) != (match[1] or ""):
            raise Refused(404, "the server could not find the requested resource")
        plural, name, rest = match[3], match[4], match[5] or ""
        self._allow(
            VERBS[method] if name or method == "POST" else "list",
            plural + (f"/{rest.partition('/')[0]}" if rest else ""),
        )
        unknown = (plural == "inferenceservices" and not self.kserve) or (plural == "httproutes" and not self.gateway)
        if unknown:
            raise Refused(404, "the server could not find the requested resource")
        if rest.startswith("proxy/"):
            return self._proxy(name, rest.removeprefix("proxy/"), body)
        if rest == "log":
            return f"log of {name}: the model is broken"
        if method == "GET" and name is None:
            return {"items": [pod for pod in self.pods().values() if _matches(pod, query.get("labelSelector", ""))]}
        if method == "PATCH":
            assert body is not None
            return self._apply(plural, name, query, body)
        return self._plain(method, plural, name, body)

    def _allow(self, verb: str, resource: str) -> None:
        if (verb, resource) in self.denied:
            group = GROUPS[resource.partition("/")[0]]
            raise Refused(
                403,
                f'{resource} is forbidden: User "system:serviceaccount:{NAMESPACE}:csflow" cannot {verb} resource '
                f'"{resource}" in API group "{group}" in the namespace "{NAMESPACE}"',
            )

    def _plain(self, method: str, plural: str, name: str | None, body: Document | None) -> Document:
        if method == "POST":
            assert body is not None
            name = body["metadata"]["name"]
            if (plural, name) in self.objects:
                raise Refused(409, f'{plural} "{name}" already exists', name=name)
            return self._store(plural, str(name), body)
        found = self.objects.get((plural, str(name)))
        if found is None:
            raise Refused(404, f'{plural} "{name}" not found', name=name)
        if method == "PUT":
            assert body is not None
            if body["metadata"].get("resourceVersion") != found["metadata"]["resourceVersion"]:
                raise Refused(
                    409, "the object has been modified; please apply your changes to the latest version", name=name
                )
            return self._store(plural, str(name), body)
        if method == "DELETE":
            del self.objects[plural, str(name)]
            self._reconcile(str(name))
            return {"status": "Success"}
        return found

    def _store(self, plural: str, name: str, body: Document) -> Document:
        stored = copy.deepcopy(body)
        stored["metadata"]["resourceVersion"] = self.next_version()
        self.objects[plural, name] = stored
        return stored

    def _apply(self, plural: str, name: str, query: dict[str, str], body: Document) -> Document:
        assert plural == "inferenceservices", plural
        assert query["fieldManager"]
        assert body["metadata"]["name"] == name
        schema = _schema(self.canaries)
        unknown = list(_unknown(body, schema, ""))
        if unknown and not self.prunes:
            raise Refused(400, f'strict decoding error: unknown field "{unknown[0].removeprefix(".")}"')
        body = _without(body, unknown)
        if schema is not None:
            _check(body, schema)
        if self.webhook:
            raise Refused(
                400,
                f'admission webhook "inferenceservice.validator" denied the request: {self.webhook}',
            )
        owners = dict(self.owners.get((plural, name), {}))
        live = copy.deepcopy(self.objects.get((plural, name), {}))
        leaves, manager = dict(_leaves(body)), query["fieldManager"]
        present = dict(_leaves(live))
        conflicts = [
            {
                "reason": "FieldManagerConflict",
                "message": f'conflict with "{owners[path]}"',
                "field": path.replace("\x00", "."),
            }
            for path, value in leaves.items()
            if owners.get(path, manager) != manager and present.get(path, value) != value
        ]
        if conflicts and query.get("force") != "true":
            raise Refused(409, f"Apply failed with {len(conflicts)} conflict", causes=conflicts, name=name)
        kept = {path: value for path, value in present.items() if path in leaves or owners.get(path, "") != manager}
        merged = _tree(kept | leaves)
        merged.setdefault("metadata", {})["resourceVersion"] = self.next_version()
        if query.get("dryRun") == "All":
            return merged
        self.objects[plural, name] = merged | {"status": live.get("status", {})}
        owned = {path: who for path, who in owners.items() if who != manager}
        self.owners[plural, name] = owned | dict.fromkeys(leaves, manager)
        self._reconcile(name)
        return self.objects[plural, name]

    def _proxy(self, pod_and_port: str, path: str, body: Document | None) -> Any:
        name, _, port = pod_and_port.partition(":")
        pod = self.objects.get(("pods", name))
        if pod is None:
            raise Refused(404, f'pods "{name}" not found', name=name)
        assert port == "8080"
        line, digest = pod["metadata"]["labels"]["serving.kserve.io/inferenceservice"], _digest(pod)
        if digest in self.servers:
            return _forward(f"{self.servers[digest]}/{path}", body)
        answered, failed = self.counts.get(digest, (0, 0))
        if path == "metrics":
            return _metrics(line, answered, failed)
        assert path == f"v1/models/{line}:predict"
        assert body is not None
        version = pod["spec"]["containers"][0]["env"][0]["value"]
        return {"predictions": [{"score": 1.0, "decision": "good", "version": version} for _ in body["instances"]]}

    # --- KServe's controller -----------------------------------------------------------------------------------
    def _reconcile(self, name: str) -> None:
        for key in [key for key in self.objects if key[0] == "pods" and key[1].startswith(f"{name}-")]:
            del self.objects[key]
        self.objects.pop(("httproutes", name), None)
        service = self.objects.get(("inferenceservices", name))
        if service is None:
            self.revisions.pop(name, None)
            return
        mode = service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"]
        service["status"]["deploymentMode"] = mode
        service["status"]["url"] = f"http://{name}.example.com"
        self._knative(name, service) if mode == "Knative" else self._standard(name, service)

    def _standard(self, name: str, service: Document) -> None:
        spec, status = service["spec"], service["status"]
        stable = spec["predictor"]
        ready = self._pods_of(name, _service_name(name, stable), service, stable)
        backends, rest, statuses = [], 100, []
        for canary in spec.get("canary", []):
            predictor = _merged(stable, canary["predictor"])
            canary_ready = self._pods_of(name, _service_name(name, predictor), service, predictor)
            statuses.append(
                {"name": predictor["name"], "ready": canary_ready, "trafficPercent": canary["trafficPercent"]}
            )
            if canary_ready:
                backends.append({"name": _service_name(name, predictor), "weight": canary["trafficPercent"]})
                rest -= canary["trafficPercent"]
        backends.insert(0, {"name": _service_name(name, stable), "weight": rest})
        status["canaryStatuses"] = statuses
        _set_ready(status, ready)
        if self.gateway:
            route = {"metadata": {"name": name}, "spec": {"rules": [{"backendRefs": backends}]}}
            self.objects["httproutes", name] = route
            self._note({_uri_of(spec, name, each["name"]): each["weight"] for each in backends})
        else:
            self._note({stable["model"]["storageUri"]: 100})

    def _knative(self, name: str, service: Document) -> None:
        predictor = dict(service["spec"]["predictor"])
        percent = predictor.pop("canaryTrafficPercent", None)
        revisions = self.revisions.setdefault(name, [])
        template = _template(service, predictor)
        if not revisions or revisions[-1]["template"] != template:
            number = f"{name}-predictor-{len(revisions) + 1:05d}"
            revisions.append({"name": number, "template": template, "predictor": predictor})
        component = service["status"].setdefault("components", {}).setdefault("predictor", {})
        component["latestCreatedRevision"] = revisions[-1]["name"]
        ready = self._pods_of(name, revisions[-1]["name"], service, predictor)
        if ready:
            component["latestReadyRevision"] = revisions[-1]["name"]
        newest, rolled = component.get("latestReadyRevision"), component.get("latestRolledoutRevision")
        if percent is not None and rolled:
            traffic = [{"latestRevision": True, "revisionName": newest, "percent": percent}]
            traffic += [{"revisionName": rolled, "percent": 100 - percent, "tag": "prev"}] if percent < 100 else []
            old = next(each for each in revisions if each["name"] == rolled)
            if rolled != revisions[-1]["name"]:
                self._pods_of(name, rolled, service, old["predictor"])
        else:
            traffic = [{"latestRevision": True, "revisionName": newest, "percent": 100}] if newest else []
            component["latestRolledoutRevision"] = newest
        component["traffic"] = traffic
        _set_ready(service["status"], ready)
        by_name = {each["name"]: each["predictor"]["model"]["storageUri"] for each in revisions}
        shares: dict[str, int] = {}
        for each in traffic:
            uri = by_name[each["revisionName"]]
            shares[uri] = shares.get(uri, 0) + each["percent"]
        self._note(shares)

    def _note(self, shares: dict[str, int]) -> None:
        if not self.history or self.history[-1] != shares:
            self.history.append(shares)

    def _pods_of(self, line: str, owner: str, service: Document, predictor: Document) -> bool:
        """The pods of one Deployment or revision; whether they are ready."""
        mark = hashlib.sha256(json.dumps(_template(service, predictor), sort_keys=True).encode()).hexdigest()[:8]
        labels = predictor["labels"] | {"serving.kserve.io/inferenceservice": line}
        trouble = self.broken.get(labels["csflow/digest"])
        for number in range(predictor["minReplicas"]):
            name = f"{owner}-{mark}-{number}"
            state: Document = {"running": {}}
            if trouble:
                state = {"waiting": {"reason": "CrashLoopBackOff", "message": trouble}}
            self.objects["pods", name] = {
                "metadata": {"name": name, "labels": labels},
                "spec": {
                    "containers": [
                        {
                            "name": "kserve-container",
                            "env": predictor["model"]["env"],
                            "ports": [{"containerPort": 8080}],
                        }
                    ]
                },
                "status": {
                    "conditions": [{"type": "Ready", "status": "False" if trouble else "True"}],
                    "containerStatuses": [
                        {
                            "name": "kserve-container",
                            "ready": not trouble,
                            "restartCount": self.restarts.get(labels["csflow/digest"], 0),
                            "state": state,
                        }
                    ],
                },
            }
        return not trouble


class Handler(BaseHTTPRequestHandler):
    """HTTP around a :class:`Cluster`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body after its headers would wait 40 ms for their acknowledgement
    cluster: Cluster

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        address = urlsplit(self.path)
        self.cluster.log.append(f"{self.command} {self.path}")
        try:
            if self.headers.get("Authorization", "") != f"Bearer {TOKEN}":
                raise Refused(401, "Unauthorized")
            if self.command == "PATCH":
                assert self.headers["Content-Type"] == "application/apply-patch+yaml"
            if self.cluster.failures:
                raise Refused(self.cluster.failures.pop(0), "etcd is restarting")
            body = json.loads(raw) if raw and raw != b"null" else None
            if "/proxy/" in address.path:  # a slow server in a pod must not stop all others
                answer = self.cluster.answer(self.command, address.path, dict(parse_qsl(address.query)), body)
            else:
                with self.cluster.lock:
                    answer = self.cluster.answer(self.command, address.path, dict(parse_qsl(address.query)), body)
                    answer = copy.deepcopy(answer)
            self.say(200, answer)
        except Refused as refused:
            status = {"kind": "Status", "code": refused.status, "message": refused.message, "details": refused.details}
            self.say(refused.status, status)

    do_GET = do_PATCH = do_POST = do_PUT = do_DELETE = handle_any

    def say(self, status: int, value: object) -> None:
        content = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(value, str) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def serve(cluster: Cluster) -> Iterator[str]:
    """Answer for a cluster on the loopback address; yields the address."""
    handler = type("Bound", (Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def kubeconfig(path: Path, server: str, token: str = TOKEN) -> Path:
    """Write a kubeconfig for the server."""
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "clusters": [{"name": "here", "cluster": {"server": server}}],
                "users": [{"name": "me", "user": {"token": token}}],
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": NAMESPACE}}],
            }
        )
    )
    return path


@cache
def _crd() -> Document | None:
    import yaml

    file = SCHEMAS / "serving.kserve.io_inferenceservices.yaml"
    if not file.exists():
        return None
    definition = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    found: Document = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def _schema(canaries: bool) -> Document | None:
    found = _crd()
    if found is None or canaries:
        return found
    spec = found["properties"]["spec"]
    older = {key: value for key, value in spec["properties"].items() if key != "canary"}
    return found | {"properties": found["properties"] | {"spec": spec | {"properties": older}}}


def _check(body: Document, schema: Document) -> None:
    import jsonschema

    for error in jsonschema.Draft7Validator(schema).iter_errors(body):
        raise Refused(422, f"InferenceService is invalid: {'.'.join(map(str, error.path))}: {error.message[:300]}")


def _unknown(value: object, schema: Document | None, path: str) -> Iterator[str]:
    """Paths the schema does not know; without the schemas only the one that matters here."""
    if schema is None:
        return
    if isinstance(value, list):
        for each in value:
            yield from _unknown(each, schema.get("items", {}), f"{path}[]")
    elif isinstance(value, dict) and "properties" in schema:
        for key, each in value.items():
            if key in schema["properties"]:
                yield from _unknown(each, schema["properties"][key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"


def _without(body: Document, unknown: list[str]) -> Document:
    pruned = copy.deepcopy(body)
    for path in unknown:
        *parents, last = path.strip(".").split(".")
        place = pruned
        for parent in parents:
            place = place[parent]
        del place[last]
    return pruned


def _leaves(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Leaves of an object by their path; lists are one value, status and bookkeeping are left out."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            if (not path and key == "status") or key == "resourceVersion":
                continue
            yield from _leaves(each, (*path, key))
    else:
        yield "." + "\x00".join(path), value


def _tree(leaves: dict[str, Any]) -> Document:
    root: Document = {}
    for path, value in leaves.items():
        *parents, last = path[1:].split("\x00")
        place = root
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return root


def _merged(stable: Document, canary: Document) -> Document:
    merged = dict(stable)
    for key, value in canary.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _template(service: Document, predictor: Document) -> Document:
    """What a pod is made from: KServe copies labels and annotations of the InferenceService into it."""
    metadata = service["metadata"]
    own = {key: value for key, value in predictor.items() if key not in ("minReplicas", "name", "canaryTrafficPercent")}
    return {"annotations": metadata["annotations"], "labels": metadata["labels"], "predictor": own}


def _service_name(line: str, predictor: Document) -> str:
    name = predictor.get("name")
    return f"{line}-{name}-predictor" if name else f"{line}-predictor"


def _uri_of(spec: Document, line: str, service: str) -> str:
    for predictor in (spec["predictor"], *(each["predictor"] for each in spec.get("canary", []))):
        if _service_name(line, predictor) == service:
            return str(predictor["model"]["storageUri"])
    raise AssertionError(service)


def _set_ready(status: Document, ready: bool) -> None:
    message = (
        {} if ready else {"reason": "MinimumReplicasUnavailable", "message": "Deployment does not have enough pods"}
    )
    status["conditions"] = [{"type": "Ready", "status": "True" if ready else "False", **message}]


def _matches(pod: Document, selector: str) -> bool:
    wanted = dict(part.split("=") for part in selector.split(","))
    return wanted.items() <= pod["metadata"]["labels"].items()


def _digest(pod: Document) -> str:
    return str(pod["metadata"]["labels"]["csflow/digest"])


def _metrics(line: str, answered: int, failed: int) -> str:
    name = "csflow_requests_total"
    return (
        f"# HELP {name} Requests by how they ended\n# TYPE {name} counter\n"
        f'{name}{{model_name="{line}",outcome="answered"}} {float(answered)}\n'
        f'{name}{{model_name="{line}",outcome="failed"}} {float(failed)}\n'
        f'{name}{{model_name="{line}",outcome="refused"}} 7.0\n'
    )


def _forward(url: str, body: Document | None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as response:
            text = response.read().decode()
    except urllib.error.HTTPError as error:
        raise Refused(error.code, error.read().decode()) from error
    return json.loads(text) if text.startswith(("{", "[")) else text
