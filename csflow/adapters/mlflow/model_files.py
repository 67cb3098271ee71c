"""Wrap a detector directory as an MLflow model that any MLflow tool can load."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import csflow

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

_NEEDED_TO_LOAD = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow", "pydantic", "scipy")


def write_model(folder: Path, detector: Path, *, run_id: str, model_id: str, example: bytes) -> None:
    """Write an MLflow model that carries a copy of the detector directory.

    The model is code (:mod:`csflow.adapters.mlflow.pyfunc_model`) plus that directory, without any pickle.
    MLflow's ``log_model`` would do the same, but through process-wide settings; it would also load the detector once
    more and report errors only as warnings.

    Args:
        folder: New folder to write.
        detector: The detector directory.
        run_id: The MLflow run that made the detector.
        model_id: MLflow's id of the model.
        example: One encoded image.
    """
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model

    mlflow.pyfunc.save_model(
        folder,
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        # As an address, because MLflow reads a path as one: at "#" and "?" it would end.
        artifacts={"detector": detector.absolute().as_uri()},
        signature=_signature(),
        input_example=pd.DataFrame({"image": [example]}),
        pip_requirements=_requirements(),
        mlflow_model=Model(run_id=run_id, model_id=model_id),
    )


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema(
            [
                ColSpec(DataType.double, "score"),
                ColSpec(DataType.double, "p_value", required=False),
                ColSpec(DataType.string, "decision", required=False),
                ColSpec(DataType.double, "threshold", required=False),
            ]
        ),
    )


def _requirements() -> list[str]:
    """List the packages needed to load the model, at the present versions (MLflow would take minutes to infer them)."""
    pins = {name: metadata.version(name).partition("+")[0] for name in _NEEDED_TO_LOAD}
    return [f"csflow=={csflow.__version__}", *(f"{name}=={version}" for name, version in pins.items())]
