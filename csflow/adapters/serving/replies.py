"""Make HTTP responses."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from starlette.responses import Response

from csflow.adapters.serving.access import current
from csflow.adapters.serving.errors import RequestError


def json_response(content: object, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    """Encode values as a JSON response."""
    return Response(orjson.dumps(content), status, dict(headers or {}), "application/json")


def refusal(error: RequestError) -> Response:
    """Make the response for a request that is not answered, and note in its account why."""
    current().outcome = error.outcome
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return json_response({"error": str(error)}, headers, error.status)
