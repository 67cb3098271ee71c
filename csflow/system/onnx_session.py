"""Open ONNX files in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from csflow.errors import ModelError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def open_session(graph: Path, *, threads: int) -> InferenceSession:
    """Open an ONNX file on the CPU.

    Args:
        graph: The file.
        threads: Cores that compute one call together; 0 for all.

    Raises:
        ModelError: If it is damaged, or a weight is not where it should be.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.dynamic_block_base", "4")  # a slow core delays the others less
    options.log_severity_level = 3  # errors are raised; the rest is for its developers
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base of their own
        raise ModelError(f"ONNX Runtime cannot open {graph}: {error} Make or download it again.") from error
