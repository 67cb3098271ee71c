"""Name the files of a detector directory, and read and write those that need no torch.

======================== ==========================================================
``config.json``          ``format``, ``kind``, the line's configuration, channels of the trunk
``model.safetensors``    what was fitted: weights in half precision, the rest as it is (:mod:`csflow.detector.model`)
``backbone.safetensors`` the trunk, so that serving never needs a model hub
``backbone.onnx``        the trunk as a graph, from sized images to features; its weights are in the file above
``model.onnx``           the model as a graph, from features to score and map; its weights are in ``model.safetensors``,
                         its properties have the digest of all other files. Both graphs have seals of their own
                         (:mod:`csflow.system.seals`)
``calibration.json``     threshold and what it promises; absent fields if none
``lineage.json``         data, run, code and seed it was made from
======================== ==========================================================

Formats 2 and 3 have one graph, ``graph.onnx``, in place of the two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csflow.config import LineConfig, parse_line_json
from csflow.detector.calibration import Calibration
from csflow.errors import ConfigError, DamagedFileError, ModelError
from csflow.system.files import sha256_file, sha256_json, write_json
from csflow.system.seals import check

DETECTOR_FORMAT = 4
"""Format that is written. Up to format 3 one graph held trunk and model, so that no trunk was shared; format 2 held
flows only; format 1 held them in full precision, without a graph."""

READABLE_FORMATS = (1, 2, 3, 4)

CONFIG, CALIBRATION, LINEAGE = "config.json", "calibration.json", "lineage.json"
MODEL, BACKBONE = "model.safetensors", "backbone.safetensors"
MODEL_GRAPH, BACKBONE_GRAPH, WHOLE_GRAPH = "model.onnx", "backbone.onnx", "graph.onnx"


@dataclass(frozen=True)
class Description:
    """Content of a detector directory's JSON files.

    Attributes:
        line: The line's configuration.
        channels: Channels of the first feature map.
        calibration: Threshold and p-values, or the kind ``none``.
        lineage: Data, run, code and seed the detector was made from, as plain JSON values.
        format: Format of the directory.
    """

    line: LineConfig
    channels: int
    calibration: Calibration
    lineage: Mapping[str, Any]
    format: int = DETECTOR_FORMAT

    @property
    def graphs(self) -> tuple[str, ...]:
        """Return the names of the graphs in the directory, the one with the digest last; none in format 1."""
        if self.format == 1:
            return ()
        return (WHOLE_GRAPH,) if self.format < 4 else (BACKBONE_GRAPH, MODEL_GRAPH)

    def write(self, directory: Path) -> None:
        """Write the JSON files."""
        about = {
            "format": DETECTOR_FORMAT,
            "kind": self.line.detector,
            "channels": self.channels,
            "line": self.line.model_dump(mode="json"),
        }
        write_json(directory / CONFIG, about)
        write_json(directory / CALIBRATION, self.calibration.to_json())
        write_json(directory / LINEAGE, dict(self.lineage))

    @classmethod
    def read(cls, directory: Path) -> Description:
        """Read the JSON files of a detector directory of any known format.

        Raises:
            ModelError: If one is missing, damaged or of a newer format.
        """
        config = _read_json(directory, CONFIG)
        if config.get("format") not in READABLE_FORMATS:
            raise ModelError(
                f"{directory}/{CONFIG} has format {config.get('format')!r}, expected one of "
                f"{', '.join(map(str, READABLE_FORMATS))}. Use the csflow version that wrote it, or train again."
            )
        try:
            line = parse_line_json(json.dumps(config["line"]), source=f"{directory}/{CONFIG}")
            channels = int(config["channels"])
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise ModelError(f"{directory}/{CONFIG} does not describe a line: {error}") from error
        calibration = Calibration.from_json(_read_json(directory, CALIBRATION))
        return cls(line, channels, calibration, _read_json(directory, LINEAGE), config["format"])


def line_of(directory: Path) -> str:
    """Return the name of the line that a detector directory was made for, without reading the rest of it.

    Raises:
        ModelError: If the directory is not a detector directory.
    """
    try:
        return str(json.loads((directory / CONFIG).read_text())["line"]["line"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{directory} is not a detector directory: its {CONFIG} names no line.") from error


def digests_beside_last_graph(directory: Path, graphs: Sequence[str]) -> dict[str, str]:
    """Compute the SHA-256 of every file of a detector directory except the last graph, which notes :func:`digest_of`.

    Args:
        directory: The detector directory.
        graphs: See :attr:`Description.graphs`.

    Raises:
        ModelError: If one is missing or cannot be read.
    """
    names = (CONFIG, MODEL, BACKBONE, CALIBRATION, LINEAGE, *graphs[:-1])
    try:
        return {name: sha256_file(directory / name) for name in names}
    except FileNotFoundError as error:
        raise not_a_detector(directory, Path(str(error.filename)).name) from error
    except OSError as error:
        raise ModelError(f"{directory} cannot be read ({error}). Download or publish the detector again.") from error


def digest_of(files: Mapping[str, str]) -> str:
    """Join the digests of files to one."""
    return sha256_json([[name, digest] for name, digest in files.items()])


def check_graphs(directory: Path, graphs: Sequence[str]) -> None:
    """Compare the graphs of a detector directory with their seals; graphs made before 0.6 have none and are accepted.

    Raises:
        ModelError: If one is missing or damaged.
    """
    for name in graphs:
        if not (directory / name).is_file():
            raise not_a_detector(directory, name)
        try:
            check(directory / name, required=name != WHOLE_GRAPH)
        except DamagedFileError as error:
            raise ModelError(f"{error} Download or publish the detector again.") from error


def compare_digest(directory: Path, noted: str, found: str) -> None:
    """Refuse a detector directory whose files are not those that its graph was made for.

    Args:
        directory: The detector directory.
        noted: The digest in the graph's properties.
        found: The digest of the files; see :func:`digest_of`.

    Raises:
        ModelError: If they differ.
    """
    if noted != found:
        raise ModelError(
            f"{directory} was changed: its graph was made for files with the digest {noted[:12]}, found {found[:12]}. "
            "Download or publish the detector again."
        )


def not_a_detector(directory: Path, missing: str) -> ModelError:
    """Return the error for a directory that lacks a file."""
    return ModelError(f"{directory} is not a detector directory: {missing} is missing.")


def _read_json(directory: Path, name: str) -> dict[str, Any]:
    path = directory / name
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise not_a_detector(directory, name) from error
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read ({error}). Download or publish the detector again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds {type(value).__name__}, expected an object.")
    return value
