"""Let only those in who have a token: ``Authorization: Bearer TOKEN``, in REST and in gRPC."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

from csflow.adapters.serving.body_limit import App, Receive, Send
from csflow.adapters.serving.errors import UnauthenticatedError
from csflow.adapters.serving.replies import refusal
from csflow.adapters.serving.tokens import Tokens

OPEN_PATHS = frozenset({"/", "/v2/health/live", "/v2/health/ready"})
"""What probes ask: it says nothing about lines."""

OPEN_CALLS = frozenset(f"/inference.GRPCInferenceService/{name}" for name in ("ServerLive", "ServerReady"))
"""The same over gRPC."""


def authenticate(tokens: Tokens, values: Sequence[bytes]) -> None:
    """Refuse a request without an accepted token.

    Args:
        tokens: Those that are accepted.
        values: The values of all ``Authorization`` headers.

    Raises:
        UnauthenticatedError: If there is not exactly one, or its token is not accepted.
    """
    if len(values) != 1:
        several = "more than one Authorization header" if values else "no Authorization header"
        raise UnauthenticatedError(f"The request has {several}. Expected: Authorization: Bearer TOKEN")
    scheme, _, token = values[0].strip().partition(b" ")
    if scheme.lower() != b"bearer":
        raise UnauthenticatedError("The Authorization header is of another kind. Expected: Authorization: Bearer TOKEN")
    if not tokens.know(token.strip()):
        raise UnauthenticatedError("The token is not accepted. Ask those who run this server for one.")


class Authentication:
    """ASGI middleware that refuses requests without a token before their body is read.

    Args:
        app: The application to protect.
        tokens: Those that are accepted.
    """

    def __init__(self, app: App, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass the request on if it may."""
        if scope["path"] not in OPEN_PATHS:
            given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
            try:
                authenticate(self._tokens, given)
            except UnauthenticatedError as error:
                await refusal(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
