"""Describe the REST routes as OpenAPI at ``/openapi.json``, and as a plain page at ``/docs``.

FastAPI's own page loads scripts from a server of others, which an inspection station may not reach and a browser with
a token should not run.
"""

from __future__ import annotations

from html import escape
from typing import Any, cast

from fastapi import FastAPI, Request, Response

from csflow.adapters.serving.replies import json_response
from csflow.adapters.serving.responses import DATATYPES

_BOXES = {"type": ["array", "null"], "items": {"type": "object"}}
_IMAGE = {"type": "object", "properties": {"b64": {"type": "string", "format": "byte"}}, "required": ["b64"]}
_WISHES = {name: {"type": "boolean", "default": False} for name in ("heatmap", "boxes")}
_PREDICTION = {
    "type": "object",
    "properties": {
        "score": {"type": "number"},
        "p_value": {"type": ["number", "null"]},
        "decision": {"type": ["string", "null"]},
        "threshold": {"type": ["number", "null"]},
        "version": {"type": "string"},
        "heatmap": {"type": "string", "format": "byte"},
        "boxes": _BOXES,
    },
}
_V1_REQUEST = {
    "type": "object",
    "properties": {
        "instances": {
            "type": "array",
            "items": {
                "oneOf": [
                    {"type": "string", "format": "byte"},
                    {"type": "object", "properties": {"image": _IMAGE, **_WISHES}, "required": ["image"]},
                ]
            },
        }
    },
    "required": ["instances"],
}
_V1_RESPONSE = {"type": "object", "properties": {"predictions": {"type": "array", "items": _PREDICTION}}}
_TENSOR = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "data": {"type": "array", "items": {}},
        "parameters": {"type": "object"},
    },
    "required": ["name", "datatype", "shape"],
}
_V2_REQUEST = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {"type": "object", "properties": {"name": {"type": "string", "enum": list(DATATYPES)}}},
        },
        "parameters": {"type": "object", "properties": _WISHES},
    },
    "required": ["inputs"],
}
_V2_RESPONSE = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "outputs": {"type": "array", "items": _TENSOR},
    },
}
_ERROR = {"type": "object", "properties": {"error": {"type": "string"}}}


def add_documentation(app: FastAPI, *, tokens: bool) -> None:
    """Add ``/openapi.json`` and ``/docs`` to an application.

    Args:
        app: An application with all its routes.
        tokens: True if clients need a token.
    """
    described = _described(app, tokens=tokens)
    page = _page(described).encode()

    async def schema(_: Request) -> Response:
        return json_response(described)

    async def docs(_: Request) -> Response:
        headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return Response(page, headers=headers, media_type="text/html; charset=utf-8")

    for path, handler in (("/openapi.json", schema), ("/docs", docs)):
        app.add_api_route(path, handler, methods=["GET"], include_in_schema=False, response_model=None)


def _described(app: FastAPI, *, tokens: bool) -> dict[str, Any]:
    """Return FastAPI's description of the routes, with the bodies, which are read by hand."""
    described = app.openapi()
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            good: dict[str, Any] = {"description": "Answer"}
            if method == "post":
                asked, answer = (_V1_REQUEST, _V1_RESPONSE) if path.startswith("/v1") else (_V2_REQUEST, _V2_RESPONSE)
                operation["requestBody"] = {"required": True, "content": _json(asked)}
                good |= {"content": _json(answer)}
            operation["responses"] = {"200": good, "default": {"description": "Refused", "content": _json(_ERROR)}}
    if tokens:
        described["components"] = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        described["security"] = [{"token": []}]
    return described


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _page(described: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{method.upper()}</td><td><code>{escape(path)}</code></td><td>{escape(_about(operation))}</td></tr>"
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    )
    title = f"{escape(described['info']['title'])} {escape(described['info']['version'])}"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        "<style>body{font:16px sans-serif;margin:2em}td{padding:.3em 1em .3em 0;vertical-align:top}</style>"
        f"<h1>{title}</h1><table>{rows}</table>"
        '<p>Bodies and answers: <a href="/openapi.json">/openapi.json</a> (OpenAPI).</p></html>'
    )


def _about(operation: dict[str, Any]) -> str:
    return cast("str", operation.get("description", "")).split("\n")[0]
