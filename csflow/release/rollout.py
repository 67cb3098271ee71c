"""From a registered version to an endpoint that serves it: publish, start, try, switch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from csflow.config import LineConfig
from csflow.errors import DeployError
from csflow.release.canary import Decision, Rollout
from csflow.release.publication import Published, publish
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from csflow.adapters.deployment import Document, Endpoint, Turn
    from csflow.adapters.mlflow.registry import Version
    from csflow.data.manifest import Manifest

SAME_SCORE = 1e-3
"""Largest relative difference between a score over HTTP and the detector's own."""


@dataclass(frozen=True)
class Deployed:
    """A version that serves its line.

    Attributes:
        endpoint: Where.
        note: What its canary steps showed; empty without any.
    """

    endpoint: Endpoint
    note: str = ""


def deploy(
    workspace: Workspace,
    line: LineConfig,
    version: Version,
    samples: Sequence[bytes],
    turn: Turn,
    decision: Decision | None = None,
) -> Deployed:
    """Publish a version, start it beside what serves, try it, and let it take over.

    Nothing happens if it serves already. The alias is the caller's to move, afterwards.

    Args:
        workspace: Where things are.
        line: The line; says where and how it is served.
        version: What to serve.
        samples: Encoded images to try the new endpoint with; none for drawn ones.
        turn: The right to change the line's endpoint.
        decision: Why it becomes champion, on a cluster in the line's canary steps; ``None`` if it is so already
            or was before: then at once.

    Raises:
        RegistryError: If the version's files are not those registered.
        DeployError: If the new endpoint does not start or fails its smoke test; the former one goes on.
    """
    from csflow.adapters import deployment

    published = publish(workspace, version)
    if deployment.on_cluster():
        return _on_cluster(line, version, published, samples, turn, decision)
    return Deployed(_on_this_machine(workspace, line, str(version.version), published.folder, samples))


def _on_cluster(
    line: LineConfig,
    version: Version,
    published: Published,
    samples: Sequence[bytes],
    turn: Turn,
    decision: Decision | None,
) -> Deployed:
    from csflow.adapters import deployment

    release = deployment.Release(str(version.version), published.digest, published.uri)
    service = deployment.service(line, turn)

    def trial(endpoint: Endpoint) -> None:
        smoke_test(endpoint, published.folder, samples)

    note = Rollout(service, turn, line, release, trial, decision).run()
    return Deployed(service.endpoint(release), note)


def _on_this_machine(
    workspace: Workspace, line: LineConfig, number: str, directory: Path, samples: Sequence[bytes]
) -> Endpoint:
    from csflow.adapters import deployment

    port = line.serving.port
    present = deployment.status(workspace, line.line)
    if isinstance(present, deployment.LocalEndpoint) and deployment.serves(present, directory.name, number, port):
        deployment.sweep(workspace, line.line)
        return present
    candidate = deployment.start_candidate(workspace, line.line, directory, number, port=port)
    try:
        smoke_test(candidate.endpoint, directory, samples)
        return deployment.switch(workspace, candidate)
    except BaseException:
        if deployment.status(workspace, line.line) != candidate.endpoint:
            deployment.discard(workspace, candidate)
        raise


def champion_document(workspace: Workspace, line: LineConfig) -> Document:
    """The InferenceService of a line's champion, for people and for GitOps; its detector is published for it.

    Raises:
        RegistryError: If the line has no champion.
        DeployError: If a cluster cannot read where detectors are published.
    """
    from csflow.adapters import deployment
    from csflow.adapters.mlflow import registry

    champion = registry.find_version(workspace, line.line)
    published = publish(workspace, champion)
    release = deployment.Release(str(champion.version), published.digest, published.uri)
    return deployment.wanted_document(line, release)


def sample_images(manifest: Manifest) -> list[bytes]:
    """A few held-out images of the line to try an endpoint with: gate, good and defective test images."""
    parts = [manifest.rows(role="gate"), manifest.rows("test", label="good"), manifest.rows("test", label="defective")]
    return [part.files[0].read_bytes() for part in parts if len(part)]


def smoke_test(endpoint: Endpoint, directory: Path, samples: Sequence[bytes]) -> None:
    """Check that the endpoint says over HTTP what the detector itself says.

    Args:
        endpoint: The endpoint to try.
        directory: The detector it should serve.
        samples: Encoded images; none for two drawn ones.

    Raises:
        DeployError: If it cannot be reached, answers for another version, or a score or decision differs.
    """
    from csflow.adapters import deployment
    from csflow.data.images import read_image
    from csflow.detector.detector import Detector

    images = list(samples) or _drawn_samples()
    answers = deployment.score(endpoint, images)
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
    """Two pictures for when no image of the line is at hand: an even one and a busy one."""
    from PIL import Image

    pictures = [Image.new("RGB", (64, 64), (128, 128, 128)), Image.linear_gradient("L").convert("RGB")]
    encoded = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    return encoded
