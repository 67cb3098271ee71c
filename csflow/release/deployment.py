"""Take a registered version to an endpoint that serves it: publish, start, try, switch."""

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
    """Publish a version, start it next to what serves, try it, and let it take over.

    Nothing happens if it serves already. Moving the alias afterwards is the caller's task.

    Args:
        services: The outside systems.
        line: The line; its configuration says where and how it is served.
        version: What to serve.
        samples: Encoded images to try the new endpoint with; drawn ones if there are none.
        lock: The right to change the line's endpoint.
        approval: Why it becomes champion, on a cluster in the line's canary steps; ``None`` if it is champion already
            or was before: then it takes over at once.

    Raises:
        RegistryError: If the version's files are not those registered.
        DeployError: If the new endpoint does not start or fails its smoke test; the former one goes on serving.
    """
    published = publish(services, version)

    def trial(endpoint: Endpoint) -> None:
        smoke_test(services.endpoints, endpoint, published.folder, samples)

    release = Release(str(version.version), published.digest, published.uri)
    return services.endpoints.deploy(line, release, published.folder, trial=trial, lock=lock, approval=approval)


def champion_document(services: Services, line: LineConfig) -> dict[str, Any]:
    """Describe the InferenceService of a line's champion, for people and for GitOps; publish its detector for it.

    Raises:
        RegistryError: If the line has no champion.
        DeployError: If a cluster cannot read where detectors are published.
    """
    champion = services.registry.find_version(line.line)
    published = publish(services, champion)
    return services.endpoints.document(line, Release(str(champion.version), published.digest, published.uri))


def sample_images(manifest: Manifest) -> list[bytes]:
    """Return a few held-out images of the line to try an endpoint with: gate, good and defective test images."""
    parts = [manifest.rows(role="gate"), manifest.rows("test", label="good"), manifest.rows("test", label="defective")]
    return [part.files[0].read_bytes() for part in parts if len(part)]


def smoke_test(endpoints: Endpoints, endpoint: Endpoint, directory: Path, samples: Sequence[bytes]) -> None:
    """Check that the endpoint says over HTTP what the detector itself says.

    Args:
        endpoints: Reaches the endpoint.
        endpoint: The endpoint to try.
        directory: The detector it should serve.
        samples: Encoded images; none for drawn ones.

    Raises:
        DeployError: If it cannot be reached, answers for another version, or a score or decision differs.
    """
    from csflow.data.images import read_image
    from csflow.detector.detector import Detector

    images = list(samples) or _drawn_samples()
    answers = endpoints.score(endpoint, images)
    predictions = Detector.load(directory).predict([read_image(image) for image in images])
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
                f"(version {endpoint.version}). The former endpoint goes on. See {endpoint.log}."
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
