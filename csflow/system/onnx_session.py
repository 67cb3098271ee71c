"""Open ONNX files in ONNX Runtime, with threads that sleep while they wait and memory that sessions share."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.errors import ModelError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_OPTIONS = {
    "session.dynamic_block_base": "4",  # a slow core delays the others less
    # A thread that spins takes the time of the one that is waited for, on a busy machine and under a quota.
    "session.intra_op.allow_spinning": "0",
    "session.use_env_allocators": "1",  # one arena for all sessions …
    "session.use_device_allocator_for_initializers": "1",  # … but weights are freed with their session
}


def open_session(graph: Path, *, threads: int) -> InferenceSession:
    """Open an ONNX file on the CPU.

    A session can be called by several threads at once. All sessions of a process take the memory of what they compute
    from one arena, which grows to what the calls at one time need.

    Args:
        graph: The file.
        threads: Cores that compute one call together; 0 for all.

    Raises:
        ModelError: If it is damaged, or a weight is not where it should be.
    """
    import onnxruntime

    _share_arena()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in _OPTIONS.items():
        options.add_session_config_entry(key, value)
    options.log_severity_level = 3  # errors are raised; the rest is for its developers
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base of their own
        raise ModelError(f"ONNX Runtime cannot open {graph}: {error} Make or download it again.") from error
    _return_freed_memory()
    return session


@cache
def _share_arena() -> None:
    import onnxruntime as ort

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    same_as_requested = 1  # twice as much as before, the default, can be far too much
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": same_as_requested}))


def _return_freed_memory() -> None:
    """Give the system back what opening a graph has used for a while: of a flow of width 64, 20 MB beside its 44.

    Only glibc keeps it and has a call for this.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
