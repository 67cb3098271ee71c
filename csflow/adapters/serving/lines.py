"""Hold the detectors that a server answers with.

They are loaded at the start or when they are asked for, replaced while requests are answered, and those that were not
used for the longest time are unloaded if memory is bounded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from operator import itemgetter

from PIL import Image

from csflow.adapters.serving.errors import UnknownLineError
from csflow.adapters.serving.responses import DATATYPES
from csflow.adapters.serving.served import ServedDetector
from csflow.detector.directory import MODEL
from csflow.detector.engine import Engine
from csflow.detector.trunk import Trunks
from csflow.system.cores import cores
from csflow.system.files import sha256_tree

_logger = logging.getLogger("csflow.serving")

_WIDENED = 2
"""Bytes in memory per byte of a model's file: weights are stored in half precision and computed with in single."""

_BESIDE = 8 * 2**20
"""Bytes of a loaded detector beside its weights: graph, prediction buffers, threads."""


@dataclass(frozen=True)
class Line:
    """A line that can be scored.

    Attributes:
        name: The line's name, part of every address.
        version: Version of the detector, as responses name it.
        engine: The detector.
    """

    name: str
    version: str
    engine: Engine

    @classmethod
    def load(cls, name: str, served: ServedDetector, trunks: Trunks | None = None) -> Line:
        """Load a detector, and score one image: the first is slow, and fails early if the detector does not work.

        Raises:
            ModelError: If the directory contains no detector.
        """
        engine = Engine.load(served.directory, trunks=trunks)
        engine.predict([Image.new("RGB", (64, 64))])
        # On a cluster the version comes with the detector, in the InferenceService, not as an argument of the runtime.
        version = served.version or os.environ.get("CSFLOW_VERSION") or sha256_tree(served.directory)[:12]
        return cls(name, version, engine)

    def describe(self) -> dict[str, object]:
        """Describe the inputs and outputs, in V2's words."""
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": "csflow",
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": each, "datatype": kind, "shape": [-1]} for each, kind in DATATYPES.items()],
        }


@dataclass
class _Entry:
    """A line that is served, loaded or not."""

    served: ServedDetector
    line: Line | None = None
    used: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Lines:
    """The lines of a server.

    Args:
        max_bytes: Memory that the weights of loaded detectors may take; a line that is not loaded is when it is asked
            for, and those that were not used for the longest time are unloaded for it. ``None`` for no bound.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self._max_bytes = max_bytes
        self._entries: Mapping[str, _Entry] = {}  # never changed, but exchanged: other threads read it
        self._unloading = threading.Lock()
        self._trunks = Trunks()
        self._loading = ThreadPoolExecutor(cores(), thread_name_prefix="load")

    def serve(self, wanted: Mapping[str, ServedDetector]) -> None:
        """Serve these lines from the start; those for which there is memory are loaded at once.

        Raises:
            ModelError: If a directory contains no detector.
        """
        self._entries = {name: _Entry(served) for name, served in wanted.items()}
        list(self._loading.map(self._load, self._that_fit()))

    def replace(self, wanted: Mapping[str, ServedDetector]) -> None:
        """Serve these lines from now on: load what is new beside what is served, then switch, line by line.

        A line whose new detector cannot be loaded keeps its old one, and an error is logged. A new line that cannot be
        loaded is not served.
        """
        for name in self._entries.keys() - wanted.keys():
            _logger.info("%s: no longer served", name)
        self._entries = {name: entry for name, entry in self._entries.items() if name in wanted}
        for name, served in wanted.items():
            before = self._entries.get(name)
            if before is not None and before.served == served:
                continue
            try:
                line = Line.load(name, served, self._trunks)
            except Exception as error:  # whatever it is, the others are still to be replaced
                _logger.error("%s: %s %s", name, error, "The detector before stays." if before else "It is not served.")
                continue
            self._entries = {**self._entries, name: _Entry(served, line, time.monotonic())}
            self._unload_least_used(keep=name)
            _logger.info("%s: version %s is served", name, line.version)

    def names(self) -> list[str]:
        """Return the names of the lines."""
        return list(self._entries)

    def loaded(self) -> list[str]:
        """Return the names of the lines whose detectors are in memory."""
        return [name for name, entry in self._entries.items() if entry.line is not None]

    async def get(self, name: str, version: str | None = None) -> Line:
        """Return a line; load its detector if it is not in memory.

        Args:
            name: Name of the line.
            version: Version that the client asks for; ``None`` for any.

        Raises:
            UnknownLineError: If the line is not served, or not in this version.
            ModelError: If its files have become unreadable.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise UnknownLineError(name)
        line = entry.line
        if line is None:
            line = await asyncio.get_running_loop().run_in_executor(self._loading, self._load, name)
        entry.used = time.monotonic()
        if version not in (None, "", line.version):
            raise UnknownLineError(name, version, line.version)
        return line

    def _load(self, name: str) -> Line:
        entry = self._entries.get(name)
        if entry is None:
            raise UnknownLineError(name)
        with entry.lock:
            line = entry.line
            if line is None:
                began = time.monotonic()
                line = entry.line = Line.load(name, entry.served, self._trunks)
                entry.used = time.monotonic()
                _logger.info("%s: version %s loaded in %.1f s", name, line.version, entry.used - began)
                self._unload_least_used(keep=name)
            return line  # the entry's may have been unloaded already, for another line

    def _that_fit(self) -> list[str]:
        """Return the lines to load at the start: in their order, until the memory is full; at least one."""
        fitting: list[str] = []
        taken = 0
        for name, entry in self._entries.items():
            taken += _bytes_of(entry.served)
            if fitting and self._max_bytes is not None and taken > self._max_bytes:
                break
            fitting.append(name)
        return fitting

    def _unload_least_used(self, keep: str) -> None:
        if self._max_bytes is None:
            return
        with self._unloading:
            loaded = [(entry.used, name, entry) for name, entry in self._entries.items() if entry.line is not None]
            total = sum(_bytes_of(entry.served) for _, _, entry in loaded)
            for _, name, entry in sorted(loaded, key=itemgetter(0)):
                if total <= self._max_bytes:
                    return
                if name != keep:
                    total -= _bytes_of(entry.served)
                    entry.line = None
                    _logger.info("%s: unloaded, because others were used later", name)


def _bytes_of(served: ServedDetector) -> int:
    """Estimate the memory of a loaded detector."""
    model = served.directory / MODEL
    return _WIDENED * (model.stat().st_size if model.exists() else 0) + _BESIDE
