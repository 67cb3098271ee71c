"""Compile pipelines for a Kubeflow Pipelines server, with a version name that depends only on their content."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from csflow.system.files import sha256_json
from pipelines.placement import Placement

Graph = Literal["retrain", "ablate"]


@dataclass(frozen=True)
class Package:
    """A compiled pipeline.

    Attributes:
        name: Name of the pipeline.
        text: Its IR YAML; a second document holds the settings that are specific to Kubernetes.
    """

    name: str
    text: str

    @property
    def version(self) -> str:
        """Return the name of the pipeline's version, which is equal for equal content, whoever compiled it."""
        return f"{self.name}-{sha256_json(self.text)[:16]}"


def compiled(graph: Graph, placement: Placement) -> Package:
    """Compile a pipeline with its placement; ``CSFLOW_IMAGE`` names the image of its steps."""
    from kfp import compiler

    if graph == "ablate":
        from pipelines.ablate import ABLATION, ablate_on

        name, pipeline = ABLATION, ablate_on(placement)
    else:
        from pipelines.retrain import NAME, retrain_on

        name, pipeline = NAME, retrain_on(placement)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, package_path=str(file))
        return Package(name, file.read_text())
