"""Detector directories as earlier versions of csflow wrote them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from csflow.detector.directory import (
    BACKBONE_GRAPH,
    CONFIG,
    MODEL_GRAPH,
    WHOLE_GRAPH,
    digest_of,
    digests_beside_last_graph,
)
from csflow.detector.graph import joined, with_weights
from csflow.features.trunk_graph import sealed_bytes


def in_format_3(directory: Path, copy: Path, *, sealed: bool = True) -> Path:
    """Write a detector directory once more with one graph for trunk and model, as csflow 0.4 and 0.5 did."""
    shutil.copytree(directory, copy)
    config = json.loads((copy / CONFIG).read_text())
    (copy / CONFIG).write_text(json.dumps(config | {"format": 3}))
    graph = joined(*(with_weights(copy / name) for name in (BACKBONE_GRAPH, MODEL_GRAPH)))
    for name in (BACKBONE_GRAPH, MODEL_GRAPH):
        (copy / name).unlink()
    kept = [entry for entry in graph.metadata_props if entry.key not in ("digest", "seal")]
    del graph.metadata_props[:]
    graph.metadata_props.extend(kept)
    graph.metadata_props.add(key="digest", value=digest_of(digests_beside_last_graph(copy, (WHOLE_GRAPH,))))
    (copy / WHOLE_GRAPH).write_bytes(sealed_bytes(graph) if sealed else graph.SerializeToString())
    return copy
