"""Send requests to the Kubernetes API server, and explain its refusals.

Every error becomes a :class:`csflow.errors.DeployError` that names the request and the remedy. Reads and server-side
applies are retried, so that a short outage of the API server does no harm.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csflow.errors import DeployError
from csflow.system.retry import retried

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

Document = dict[str, Any]

FIELD_MANAGER = "csflow"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT = (5.0, 60.0)
APPLY = "application/apply-patch+yaml"


class ApiError(DeployError):
    """A request that the API server refused or did not answer.

    Args:
        message: The message for people.
        status: HTTP status; 0 if there was no response.
        body: The server's ``Status`` object; empty if there was none.
    """

    def __init__(self, message: str, status: int = 0, body: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = dict(body or {})

    @property
    def said(self) -> str:
        """Return the server's own message."""
        return str(self.body.get("message", ""))


@dataclass(frozen=True)
class ResourceKind:
    """A kind of object, as paths of the API server name it.

    Attributes:
        group: API group; empty for the core.
        version: Version of the group.
        plural: Plural name of the kind, as in paths.
    """

    group: str
    version: str
    plural: str

    def path(self, namespace: str, name: str = "") -> str:
        """Return the path of all objects in a namespace, or of the one with a name."""
        root = f"/apis/{self.group}" if self.group else "/api"
        return f"{root}/{self.version}/namespaces/{namespace}/{self.plural}" + (f"/{name}" if name else "")


INFERENCE_SERVICE = ResourceKind("serving.kserve.io", "v1beta1", "inferenceservices")
HTTP_ROUTE = ResourceKind("gateway.networking.k8s.io", "v1", "httproutes")
LEASE = ResourceKind("coordination.k8s.io", "v1", "leases")
POD = ResourceKind("", "v1", "pods")


@dataclass(frozen=True)
class KubernetesApi:
    """A client for one namespace of a cluster.

    Attributes:
        client: The Kubernetes client, with address and credentials.
        namespace: Namespace of the endpoints.
    """

    client: ApiClient
    namespace: str

    def get(self, kind: ResourceKind, name: str) -> Document | None:
        """Read an object; return ``None`` if there is none with that name.

        Raises:
            ApiError: If the cluster does not know the kind, or refuses to read the object.
        """
        try:
            found: Document = self._patiently("GET", kind.path(self.namespace, name))
        except ApiError as error:
            if error.status == 404 and error.body.get("details", {}).get("name") == name:
                return None
            raise
        return found

    def pods(self, selector: str) -> list[Document]:
        """List the pods with these labels."""
        answer = self._patiently("GET", POD.path(self.namespace), query={"labelSelector": selector})
        return list(answer["items"])

    def apply(self, kind: ResourceKind, document: Document, *, dry_run: bool = False, force: bool = False) -> Document:
        """Apply a document on the server: set its fields, and remove those that csflow applied before but not now.

        Fields that the cluster does not know are an error; they are not dropped.

        Raises:
            ApiError: 409 if another manager owns one of the fields and ``force`` is not set.
        """
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict", "force": str(force).lower()}
        path = kind.path(self.namespace, document["metadata"]["name"])
        query |= {"dryRun": "All"} if dry_run else {}
        applied: Document = self._patiently("PATCH", path, query=query, body=document, content_type=APPLY)
        return applied

    def create(self, kind: ResourceKind, document: Document) -> Document:
        """Create an object; raise an :class:`ApiError` 409 if there is one with that name."""
        created: Document = self._request("POST", kind.path(self.namespace), body=document)
        return created

    def replace(self, kind: ResourceKind, document: Document) -> Document:
        """Replace an object; raise an :class:`ApiError` 409 if it has changed since it was read."""
        path = kind.path(self.namespace, document["metadata"]["name"])
        replaced: Document = self._request("PUT", path, body=document)
        return replaced

    def delete(self, kind: ResourceKind, name: str) -> bool:
        """Delete an object and what it owns; return True if there was one."""
        try:
            self._request("DELETE", kind.path(self.namespace, name), query={"propagationPolicy": "Background"})
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def pod_log(self, pod: str, container: str, *, lines: int, previous: bool = False) -> str:
        """Return the last log lines of a pod's container, or of its run before the last restart."""
        query = {"container": container, "tailLines": str(lines), "previous": str(previous).lower()}
        return str(self._request("GET", f"{POD.path(self.namespace, pod)}/log", query=query))

    def through_pod(self, pod: str, port: int, path: str, body: bytes | None = None) -> Any:
        """Send a request to a server in a pod through the API server, which also works from outside the cluster.

        Args:
            pod: Name of the pod.
            port: Port that the server listens on.
            path: Path on that server, without a leading slash.
            body: JSON to send by POST; ``None`` for a GET.

        Returns:
            The parsed JSON, or the text if it is not JSON.
        """
        address = f"{POD.path(self.namespace, pod)}:{port}/proxy/{path}"
        if body is None:
            return self._patiently("GET", address)
        return self._request("POST", address, body=json.loads(body))

    @retried(lambda error: isinstance(error, ApiError) and _passes(error.status))
    def _patiently(self, method: str, path: str, **named: Any) -> Any:
        return self._request(method, path, **named)

    def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
    ) -> Any:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        headers = {"Accept": "application/json, */*", "Content-Type": content_type}
        try:
            return self.client.call_api(
                path,
                method,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                response_type="object",
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=TIMEOUT,
            )
        except ApiException as error:
            raise self._refusal(method, path, error) from error
        except (HTTPError, OSError) as error:
            raise ApiError(
                f"The API server {self.client.configuration.host} does not answer ({_root(error)}). Check that the "
                "cluster runs and can be reached: kubectl cluster-info."
            ) from error

    def _refusal(self, method: str, path: str, error: Any) -> ApiError:
        host = self.client.configuration.host
        body = _status(error.body)
        said = str(body.get("message") or error.body or error.reason or "").strip()[:2000]
        what = f"{method} {path}"
        status = int(error.status or 0)
        if status == 401:
            said = (
                f"The API server {host} does not accept the credentials (401): the token is missing, wrong or expired. "
                "Renew those of the kubeconfig, or give the pod its service account."
            )
        elif "admission webhook" in said:
            said = f"An admission webhook of the cluster refused {what}: {said}"
        elif status == 403:
            said = f"{said} ({what}). {_remedy(said, self.namespace)}"
        elif status == 404 and "name" not in body.get("details", {}):
            said = (
                f"The cluster at {host} does not know {what}: {said}. Is KServe installed? See docs/guides/cluster.md."
            )
        else:
            said = f"The API server {host} refused {what} ({status}): {said}"
        return ApiError(said, status, body)


def connect() -> KubernetesApi:
    """Connect to the cluster that this process runs in, or else to the one that ``KUBECONFIG`` names.

    Raises:
        DeployError: If there is neither.
    """
    from kubernetes import config
    from kubernetes.client import ApiClient, Configuration

    configuration = Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
        namespace = (SERVICE_ACCOUNT / "namespace").read_text().strip()
    except (config.ConfigException, OSError):
        try:
            file = os.environ.get("KUBECONFIG")  # the client itself reads it only once, when it is imported
            config.load_kube_config(config_file=file, client_configuration=configuration)
            _, context = config.list_kube_config_contexts(config_file=file)
        except (config.ConfigException, OSError) as error:
            raise DeployError(
                f"CSFLOW_ENDPOINTS=kubernetes, but there is no cluster to talk to ({error}). Run in a pod with a "
                "service account, or name a kubeconfig: export KUBECONFIG=FILE"
            ) from error
        namespace = context["context"].get("namespace", "")
    return KubernetesApi(ApiClient(configuration), os.environ.get("CSFLOW_NAMESPACE") or namespace or "csflow")


def _passes(status: int) -> bool:
    """Return True if a failure is temporary: no response, too many requests, or a server that restarts."""
    return status in (0, 429) or status >= 500


def _status(body: object) -> Document:
    try:
        found = json.loads(body) if isinstance(body, str | bytes) else None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _root(error: BaseException) -> str:
    """Return the innermost reason of urllib3's nested errors."""
    reason = getattr(error, "reason", None)
    return str(reason if reason is not None else error)


def _remedy(said: str, namespace: str) -> str:
    """Describe what to add to the Role, as read from the server's message."""
    found = re.search(r'cannot (\w+) resource "([^"]+)" in API group "([^"]*)"', said)
    if found is None:
        return f"Mend the Role of this account in namespace {namespace}."
    verb, resource, group = found.groups()
    return (
        f'Add to the Role of this account in namespace {namespace}: apiGroups ["{group}"], resources ["{resource}"], '
        f'verbs ["{verb}"]. infra/kubernetes/base has the whole Role.'
    )
