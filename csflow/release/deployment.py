"""Deploy a registered version to an endpoint: publish it, start it, test it, and switch to it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csflow.adapters.deployment.endpoints import Release
from csflow.config import LineConfig
from csflow.errors import DeployError
from csflow.release.publication import publish
from csflow.runs.services import Services

if TYPE_CHECKING:
    from csflow.adapters.deployment.endpoints import Approval, Deployed, Endpoint, EndpointLock, Endpoints
    from csflow.adapters.mlflow.versions import Version
    from csflow.data.manifest import Manifest
    from csflow.runs.services import Services

SAME_SCORE = 1e-3
"""Largest relative difference between a score over HTTP and the detector's own."""


def deploy(
    services: Services,
    line: LineConfig,
    version: Version,
    samples: Sequence[bytes],
    lock: EndpointLock,
    approval: Approval | None = None,
) -> Deployed:
    """Publish a version, start it next to the one that serves, test it, and switch to it.

    Nothing happens if it is served already. The caller has to move the alias afterwards.

    Args:
        services: The outside systems.
        line: The line, whose configuration says where and how it is served.
        version: The version to serve.
        samples: Encoded images to test the new endpoint with; if empty, two generated images are used.
        lock: The lock of the line's endpoint.
        approval: Why it becomes champion; on a cluster it then takes over in the line's canary steps. ``None`` if it is
            or was champion: it takes over at once.

    Raises:
        RegistryError: If the version's files are not those registered.
        DeployError: If the new endpoint does not start or fails its smoke test; the former one continues to serve.
    """
    published = publish(services, version)

    def trial(endpoint: Endpoint) -> None:
        smoke_test(services.endpoints, endpoint, published.folder, samples)

    release = Release(str(version.version), published.digest, published.uri)
    return services.endpoints.deploy(line, release, published.folder, trial=trial, lock=lock, approval=approval)


def champion_document(services: Services, line: LineConfig) -> dict[str, Any]:
    """Publish the detector of a line's champion and return its InferenceService, for people and for GitOps.

    Raises:
        RegistryError: If the line has no champion.
        DeployError: If a cluster cannot read where detectors are published.
    """
    champion = services.registry.find_version(line.line)
    published = publish(services, champion)
    return services.endpoints.document(line, Release(str(champion.version), published.digest, published.uri))


def sample_images(manifest: Manifest) -> list[bytes]:
    """Read a few held-out images to test an endpoint with: a gate image, and a good and a defective test image."""
    parts = [manifest.rows(role="gate"), manifest.rows("test", label="good"), manifest.rows("test", label="defective")]
    return [part.files[0].read_bytes() for part in parts if len(part)]


def smoke_test(endpoints: Endpoints, endpoint: Endpoint, directory: Path, samples: Sequence[bytes]) -> None:
    """Check that the endpoint gives the same results over HTTP as the detector itself.

    Args:
        endpoints: Reaches the endpoint.
        endpoint: The endpoint to test.
        directory: The detector it should serve.
        samples: Encoded images; if empty, two generated images are used.

    Raises:
        DeployError: If it cannot be reached, answers for another version, or a score or decision differs.
    """
    from csflow.detector.detector import Detector

    images = list(samples) or _drawn_samples()
    answers = endpoints.score(endpoint, images)
    detector = Detector.load(directory)
    predictions = detector.predict([detector.read(image) for image in images])
    if len(answers) != len(images):
        raise DeployError(f"{endpoint.url} gave {len(answers)} answers for {len(images)} images. See {endpoint.log}.")
    for answer, prediction in zip(answers, predictions, strict=True):
        expected = prediction.score
        near = abs(answer["score"] - expected) <= SAME_SCORE * abs(expected)
        undecided = prediction.threshold is not None and (
            abs(prediction.threshold - expected) <= SAME_SCORE * abs(expected)
        )
        agrees = undecided or answer["decision"] == prediction.decision
        if not (near and agrees and answer["version"] == endpoint.version):
            raise DeployError(
                f"Smoke test of {endpoint.url} failed: it answers score {answer['score']:g}, {answer['decision']} "
                f"(version {answer['version']}); the detector itself says {expected:g}, {prediction.decision} "
                f"(version {endpoint.version}). The former endpoint still serves. See {endpoint.log}."
            )


def _drawn_samples() -> list[bytes]:
    """Encode drawn pictures, for when no image of the line is at hand."""
    from csflow.detector.graph_file import drawn_examples

    encoded = []
    for picture in drawn_examples():
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded
