"""Refuse bodies that are too large before they are read, and those for which there is no memory now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from csflow.adapters.serving.errors import OverloadError, RequestError, TooLargeError
from csflow.adapters.serving.limits import Limits
from csflow.adapters.serving.replies import refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

TAKE = "csflow.take"
"""Key of an ASGI scope: a function that takes further bytes for the request, those that unpacking it made."""


class BodyBudget:
    """Bytes of the requests that are in memory, over all protocols.

    Args:
        limits: How many they may be, and how many those of one request.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.taken = 0

    def take(self, before: int, more: int) -> None:
        """Take bytes for a request.

        Args:
            before: Bytes that the request has taken.
            more: Bytes to take.

        Raises:
            TooLargeError: If the request is too large.
            OverloadError: If too much is in memory.
        """
        if before + more > self._limits.body_bytes:
            self.check(before + more)
        self.check(more)
        self.taken += more

    def check(self, more: int) -> None:
        """Check that there is room.

        Args:
            more: Bytes to come.

        Raises:
            TooLargeError: If one request is that large.
            OverloadError: If too much is in memory.
        """
        if more > self._limits.body_bytes:
            raise TooLargeError(
                f"The request is larger than {self._limits.body_bytes} bytes. Send fewer or smaller images at a time."
            )
        if self.taken + more > self._limits.bodies_bytes:
            raise OverloadError("Requests of other clients fill the memory. Try again later.", 1.0)

    def give_back(self, size: int) -> None:
        """Give the bytes of a request back when it is over."""
        self.taken -= size


class BodyLimit:
    """ASGI middleware that refuses a body that is too large, declared or streamed.

    Args:
        app: The application to protect.
        budget: What bodies may take.
    """

    def __init__(self, app: App, budget: BodyBudget) -> None:
        self._app = app
        self._budget = budget

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass the request on, counting the bytes of its body."""
        declared = dict(scope["headers"]).get(b"content-length", b"")
        announced = int(declared) if declared.isdigit() and len(declared) < 19 else 0
        taken = 0

        def take(more: int) -> None:
            nonlocal taken
            self._budget.take(taken, max(0, more))
            taken += max(0, more)

        async def counted() -> Message:
            message = await receive()
            take(len(message.get("body", b"")))
            return message

        scope[TAKE] = take
        try:
            # What is announced is not taken: a few clients that announce much and send nothing would shut others out.
            self._budget.check(announced)
        except RequestError as error:
            await refusal(error)(scope, receive, send)
            return
        try:
            await self._app(scope, counted, send)
        finally:
            self._budget.give_back(taken)
