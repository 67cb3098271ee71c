"""Driver that sends requests, in a process of its own so that it takes nothing from what it measures."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from sidebyside.child import Channel

from servers.connection import Connection, Request
from servers.protocols import packed, request_of, scores_of
from servers.running import HOST
from servers.settings import LINE

PAUSE = 0.05
"""Seconds after a refusal, which is fast: clients that ask again at once would measure nothing else."""

Ask = Callable[[int], Awaitable[list[float]]]
"""Sends the request that begins with image ``i`` and returns its scores."""


class RefusedError(Exception):
    """The answer is an error; the text is its status."""


class Driver:
    """Driver of clients.

    All methods return ``images`` (scored), ``seconds`` (of the whole), ``milliseconds`` (of each request), ``errors``
    (how often, by status), ``worst`` (largest relative error of a score), ``scores`` (index of an image, its lowest and
    its highest score) and ``own`` (this process's processor seconds).
    """

    def __init__(self, folder: Path, _: Channel, scores: str) -> None:
        self._images = [Path(name).read_bytes() for name in json.loads((folder / "images.json").read_text())]
        self._right = json.loads(Path(scores).read_text())

    def closed(
        self,
        port: int,
        protocol: str,
        *,
        clients: int,
        seconds: float,
        line: str = LINE,
        size: int = 1,
        least: int = 1,
        stop: str | None = None,
    ) -> dict[str, Any]:
        """Send from some clients at once, each as soon as it has its last answer.

        Args:
            port: Of the server.
            protocol: One of the protocols, or ``live`` to ask only if the server is alive.
            clients: How many.
            seconds: For how long.
            line: The line that is asked.
            size: Images in a request.
            least: Requests of each client at least, however long they take.
            stop: A file; when it is there, no request is sent beyond the least number.
        """
        numbers = count()

        async def client(ask: Ask, tally: _Tally, until: float) -> None:
            done = 0
            while done < least or (time.perf_counter() < until and not (stop and Path(stop).exists())):
                await tally.timed(ask, next(numbers))
                done += 1

        return self._run(port, protocol, client, clients, seconds, line, size)

    def paced(self, port: int, protocol: str, *, rate: float, clients: int, seconds: float) -> dict[str, Any]:
        """Send images at a rate; the time of a request counts from when it was due, also if no client was free.

        Args:
            port: Of the server.
            protocol: One of the protocols.
            rate: Images a second.
            clients: Connections at most.
            seconds: For how long.
        """
        numbers = count()

        async def client(ask: Ask, tally: _Tally, until: float) -> None:
            while True:
                number = next(numbers)
                due = until - seconds + number / rate
                if due >= until:
                    return
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                await tally.timed(ask, number, since=due)

        return self._run(port, protocol, client, clients, seconds, LINE, 1)

    def depart(self, port: int, *, clients: int, size: int, seconds: float) -> float:
        """Send a request from each client, disconnect all, and return the seconds until a new client has its answer.

        Args:
            port: Of the server.
            clients: How many.
            size: Images in each request.
            seconds: From the last request to the departure.
        """
        encoded = [self._encoded("v1", LINE, size, number).encoded() for number in range(clients)]
        new = self._encoded("v1", LINE, 1, 0).encoded()

        async def leave() -> float:
            connections = [Connection(port) for _ in encoded]
            await asyncio.gather(*(each.send(body) for each, body in zip(connections, encoded, strict=True)))
            await asyncio.sleep(seconds)
            for each in connections:
                each.close()
            began = time.perf_counter()
            async with Connection(port) as connection:
                while (status := (await connection.ask(new))[0]) == 503:
                    await asyncio.sleep(PAUSE)
            if status != 200:
                raise RefusedError(str(status))
            return time.perf_counter() - began

        return asyncio.run(leave())

    def send_file(self, port: int, path: str, file: str, headers: dict[str, str], copies: int) -> dict[str, Any]:
        """Send a body from a file on several connections at once, and meanwhile ask if the server is alive.

        Returns:
            ``status`` (of each copy, ``closed`` without an answer), ``seconds`` (until the last answer) and ``live``
            (the slowest answer to a probe in seconds, None if one was not answered).
        """
        encoded = Request("POST", path, Path(file).read_bytes(), headers).encoded()

        async def one() -> str:
            try:
                async with Connection(port) as connection:
                    return str((await connection.ask(encoded))[0])
            except OSError:
                return "closed"

        async def all_of_them() -> dict[str, Any]:
            probe = asyncio.create_task(_probe(port))
            began = time.perf_counter()
            found = await asyncio.gather(*(one() for _ in range(copies)))
            elapsed = time.perf_counter() - began
            probe.cancel()
            slowest = (await asyncio.gather(probe, return_exceptions=True))[0]
            return {"status": found, "seconds": elapsed, "live": slowest if isinstance(slowest, float) else None}

        return asyncio.run(all_of_them())

    def _run(
        self,
        port: int,
        protocol: str,
        client: Callable[[Ask, _Tally, float], Coroutine[Any, Any, None]],
        clients: int,
        seconds: float,
        line: str,
        size: int,
    ) -> dict[str, Any]:
        tally = _Tally(self._right if protocol != "live" else None)

        async def run() -> float:
            async with AsyncExitStack() as stack:
                asks = await self._asks(stack, port, protocol, clients, line, size)
                own = time.process_time()
                tally.began = time.perf_counter()
                await asyncio.gather(*(client(ask, tally, tally.began + seconds) for ask in asks))
                tally.ended = time.perf_counter()
                return time.process_time() - own

        own = asyncio.run(run())
        return tally.result() | {"own": own}

    async def _asks(
        self, stack: AsyncExitStack, port: int, protocol: str, clients: int, line: str, size: int
    ) -> list[Ask]:
        """Open connections and return the function of each that sends over it."""
        if protocol == "grpc":
            groups = [self._some(number, size) for number in range(self._kinds(size))]
            return await _over_grpc(stack, port, line, groups, clients)
        if protocol == "live":
            bodies = [Request("GET", "/v2/health/live").encoded()]
        else:
            bodies = [self._encoded(protocol, line, size, number).encoded() for number in range(self._kinds(size))]

        def over(connection: Connection) -> Ask:
            async def ask(number: int) -> list[float]:
                status, body = await connection.ask(bodies[number % len(bodies)])
                if status != 200:
                    raise RefusedError(str(status))
                return scores_of(protocol, body) if protocol != "live" else []

            return ask

        return [over(await stack.enter_async_context(Connection(port))) for _ in range(clients)]

    def _kinds(self, size: int) -> int:
        """Return how many different requests there are: few large ones, because they take memory."""
        return len(self._images) if size == 1 else 1

    def _some(self, number: int, size: int) -> list[bytes]:
        return [self._images[(number + i) % len(self._images)] for i in range(size)]

    def _encoded(self, protocol: str, line: str, size: int, number: int) -> Request:
        return request_of(protocol, line, self._some(number, size))


class _Tally:
    """Counts what clients see.

    Args:
        right: Correct scores of the images; None if answers have none.
    """

    def __init__(self, right: Sequence[float] | None) -> None:
        self.began = self.ended = 0.0
        self._right = right
        self._milliseconds: list[float] = []
        self._errors: Counter[str] = Counter()
        self._images = 0
        self._worst = 0.0
        self._scores: dict[int, tuple[float, float]] = {}

    async def timed(self, ask: Ask, number: int, since: float | None = None) -> None:
        """Send a request, and count its time and its answer."""
        began = time.perf_counter() if since is None else since
        try:
            scores = await ask(number)
        except RefusedError as error:
            self._errors[str(error)] += 1
            await asyncio.sleep(PAUSE)
            return
        except OSError:
            self._errors["closed"] += 1
            return
        self._milliseconds.append(1e3 * (time.perf_counter() - began))
        if self._right is None:
            return
        self._images += len(scores)
        first = number % len(self._right) if len(scores) == 1 else 0
        for index, score in enumerate(scores):
            image = (first + index) % len(self._right)
            off = abs(score - self._right[image]) / abs(self._right[image])
            low, high = self._scores.get(image, (score, score))
            self._scores[image] = min(low, score), max(high, score)
            self._worst = max(self._worst, off if math.isfinite(off) else math.inf)

    def result(self) -> dict[str, Any]:
        """Return all figures."""
        return {
            "images": self._images,
            "seconds": self.ended - self.began,
            "milliseconds": self._milliseconds,
            "errors": dict(self._errors),
            "worst": math.inf if self._right and not self._images else self._worst,  # nothing is not right
            "scores": [(image, low, high) for image, (low, high) in sorted(self._scores.items())],
        }


async def _over_grpc(
    stack: AsyncExitStack, port: int, line: str, groups: Sequence[Sequence[bytes]], clients: int
) -> list[Ask]:
    from csflow.adapters.serving import without_arguments

    with without_arguments():
        from grpc import RpcError, aio  # type: ignore[import-untyped]
        from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
        from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    requests = [
        messages.ModelInferRequest(
            model_name=line,
            inputs=[messages.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[len(images)])],
            raw_input_contents=[packed(images)],
        )
        for images in groups
    ]

    def over(infer: Any) -> Ask:
        async def ask(number: int) -> list[float]:
            try:
                answer = await infer(requests[number % len(requests)])
            except RpcError as error:
                raise RefusedError(error.code().name) from error
            names = [output.name for output in answer.outputs]
            scores: list[float] = np.frombuffer(answer.raw_output_contents[names.index("score")], np.float64).tolist()
            return scores

        return ask

    asks = []
    for _ in range(clients):
        # Channels to the same address share a connection unless they are told not to.
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        channel = await stack.enter_async_context(aio.insecure_channel(f"{HOST}:{port}", options=options))
        asks.append(over(GRPCInferenceServiceStub(channel).ModelInfer))
    return asks


async def _probe(port: int) -> float:
    """Ask if the server is alive, ten times a second, until cancelled; return the longest wait in seconds."""
    request, slowest, asked = Request("GET", "/v2/health/live").encoded(), 0.0, 0.0
    try:
        async with Connection(port) as connection:
            while True:
                asked = time.perf_counter()
                await connection.ask(request)
                slowest, asked = max(slowest, time.perf_counter() - asked), 0.0
                await asyncio.sleep(0.1)
    except asyncio.CancelledError:
        return max(slowest, time.perf_counter() - asked) if asked else slowest
