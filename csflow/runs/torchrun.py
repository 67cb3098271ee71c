"""Fit a line's detector in several processes on one machine, each with its own GPU.

The step ``train`` writes a job (features, images, configuration, and the folder of the model), lets ``torchrun`` start
the processes on it and reads their output. To do the same by hand::

    python -m csflow.runs.torchrun prepare LINE job.json
    torchrun --standalone --nproc-per-node 4 -m csflow.runs.torchrun fit job.json

The model is stored where the pipeline looks for it, under the digest of its inputs: a run of the line with the same
images, configuration and code finds it and does not train again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from csflow import errors
from csflow.config import LineConfig, load_line, parse_line_json
from csflow.errors import CsflowError, DamagedFileError, UsageError
from csflow.runs.fitting import OnEpoch, fit_here, images_to_fit, model_folder
from csflow.system.files import write_json
from csflow.system.process_family import guarded
from csflow.system.progress import say
from csflow.system.seals import read_sealed_json, write_sealed_json
from csflow.system.threads import NUMBER, share_of_threads
from csflow.system.workspace import Workspace

if TYPE_CHECKING:
    from csflow.features.cache_manifest import CacheManifest
    from csflow.flow.training import EpochResult

EPOCH = "csflow-epoch "
"""Prefix of a line of standard output that reports an epoch: libraries also print to standard output."""


@dataclass(frozen=True)
class Job:
    """The inputs of a training in several processes.

    Attributes:
        line: The line's configuration.
        images: SHA-256 of the images to fit.
        folder: Folder of the model, in a folder that all processes can write to.
        held_out: SHA-256 of good images whose likelihood is measured.
    """

    line: LineConfig
    images: list[str]
    folder: Path
    held_out: tuple[str, ...] = ()

    def save(self, path: Path, cached: CacheManifest) -> None:
        """Write the job, and next to it the manifest of its features."""
        cached.save(_features(path))
        plain = {
            "line": self.line.model_dump(mode="json"),
            "images": self.images,
            "folder": str(self.folder.absolute()),
            "held_out": list(self.held_out),
        }
        write_sealed_json(path, plain)

    @classmethod
    def load(cls, path: Path) -> Job:
        """Read the job that :meth:`save` wrote.

        Raises:
            UsageError: If the file is missing or is not a job.
        """
        try:
            plain = read_sealed_json(path)
            line = parse_line_json(json.dumps(plain["line"]), source=path)
            return cls(line, list(plain["images"]), Path(plain["folder"]), tuple(plain.get("held_out", ())))
        except (DamagedFileError, KeyError, TypeError) as error:
            raise UsageError(
                f"{path} is no training job ({error!r}). Make one: python -m csflow.runs.torchrun prepare LINE {path}"
            ) from error


def fit_together(
    line: LineConfig,
    cached: CacheManifest,
    images: list[str],
    folder: Path,
    publish: OnEpoch,
    *,
    processes: int,
    held_out: Sequence[str] = (),
) -> None:
    """Fit a line's detector in several processes and wait for them; resume a training that was killed.

    SIGTERM and SIGINT are forwarded: the processes write a checkpoint after their current step and exit. ``torchrun``
    kills them after 30 seconds. If this process is killed, they end as well.

    Args:
        line: The line's configuration.
        cached: Features of at least the images.
        images: SHA-256 of the images to fit.
        folder: Folder of the model; see :func:`csflow.runs.fitting.fit_here`.
        publish: Receives the result of every epoch.
        processes: Number of processes, each with its own GPU if it trains on GPUs.
        held_out: SHA-256 of good images that are not fitted, whose likelihood is measured.

    Raises:
        CsflowError: If a process fails; class and message are those of its error.
        SystemExit: After a signal.
    """
    with tempfile.TemporaryDirectory(prefix="csflow-fit-") as name:
        job = Path(name) / "job.json"
        Job(line, images, folder, tuple(held_out)).save(job, cached)
        began = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
        command = [*began, "--nproc-per-node", str(processes), "-m", __name__, "fit", str(job), "--tell"]
        # In a new session, Ctrl-C at a terminal reaches the processes only once: forwarded by this process.
        with guarded() as family:
            environment = _environment(processes) | family.environment
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
            )
            with _forwarded_signals(process) as received:
                _listen(process, publish)
        if received:
            raise SystemExit(128 + received[0])
        if process.returncode:
            raise _failure(job, processes, process.returncode)


def _environment(processes: int) -> dict[str, str]:
    """Return an environment with this code and an equal share of the cores; ``torchrun`` would give each just one."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return os.environ | {NUMBER: str(share_of_threads(processes)), "PYTHONPATH": path}


def _listen(process: subprocess.Popen[str], publish: OnEpoch) -> None:
    """Publish every epoch until the processes end; if publishing fails, terminate them."""
    from csflow.flow.training import EpochResult

    assert process.stdout is not None
    try:
        for text in process.stdout:
            if text.startswith(EPOCH):
                publish(EpochResult(**json.loads(text.removeprefix(EPOCH))))
            else:
                sys.stderr.write(text)
    finally:
        if sys.exc_info()[0] is not None:
            process.terminate()
        process.wait()


@contextmanager
def _forwarded_signals(process: subprocess.Popen[str]) -> Iterator[Sequence[int]]:
    """Forward SIGTERM and SIGINT to a process as SIGTERM instead of ending this one.

    Yields:
        The signals received so far.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield received
        return

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:  # a second signal would interrupt torchrun while it ends the processes
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _failure(job: Path, processes: int, status: int) -> CsflowError:
    """Return the error that ended the training, not those of processes that merely lost their peer."""
    told = [json.loads(file.read_text()) for file in sorted(job.parent.glob("error-*.json"))]
    for error in told:
        if error["kind"] is not None:
            kind: type[CsflowError] = getattr(errors, error["kind"])
            return kind(error["message"])
    if told:
        return CsflowError(f"Training in {processes} processes failed: {told[0]['message']}")
    return CsflowError(
        f"Training in {processes} processes ended with status {status} and without a message: one of them was killed, "
        "for instance because memory ran out. Give the step more memory, lower training.batch_size, or set "
        "resources.gpus to 1. The next run resumes from the last checkpoint."
    )


def prepare(line: LineConfig, path: Path, workspace: Workspace) -> Job:
    """Check out a line's data, extract missing features and write the job that fits the line.

    Raises:
        CsflowError: Of any kind, if data or features are not available.
    """
    from csflow.features.backbone import load_backbone
    from csflow.features.store import FeatureStore
    from csflow.runs.checkout import materialise

    manifest, _ = materialise(line, workspace)
    cached = FeatureStore(workspace.features).extract(manifest, line.features, load_backbone(line.features))
    images = images_to_fit(line, list(manifest.rows(role="fit").frame["sha256"]))
    job = Job(line, images, model_folder(line, cached, images, workspace.models))
    job.save(path, cached)
    return job


def fit_job(path: Path, *, tell: bool) -> None:
    """Run a job as one of the processes that ``torchrun`` started.

    Args:
        path: The file that :meth:`Job.save` wrote.
        tell: If True, the first process reports every epoch on standard output, and every process writes its failure
            to a file in the folder of the job.

    Raises:
        CsflowError: Of any kind, if the detector cannot be fitted.
        SystemExit: After a signal.
    """
    try:
        from csflow.features.cache_manifest import CacheManifest
        from csflow.flow.distributed import join_process_group

        job = Job.load(path)
        with join_process_group(device=job.line.training.device) as group:
            cached = CacheManifest.load(_features(path))
            publish = _tell if tell else lambda result: None
            fit_here(job.line, cached, job.images, job.folder, publish, group=group, held_out=job.held_out)
            if group.first:
                say(f"train: the model is stored in {job.folder}")
    except Exception as error:
        if tell:
            kind = type(error).__name__ if isinstance(error, CsflowError) else None
            message = str(error) if kind else f"{type(error).__name__}: {error}"
            write_json(path.with_name(f"error-{os.environ.get('RANK', '0')}.json"), {"kind": kind, "message": message})
        raise


def _tell(result: EpochResult) -> None:
    print(f"{EPOCH}{json.dumps(asdict(result))}", flush=True)


def _features(job: Path) -> Path:
    return job.with_suffix(".features.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; see the docstring of this module."""
    parser = ArgumentParser(prog="python -m csflow.runs.torchrun", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("prepare", help="check out the data, extract missing features, write the job")
    first.add_argument("line", help="name of a line, or its YAML file")
    then = commands.add_parser("fit", help="run as one of the processes; torchrun starts this")
    then.add_argument("--tell", action="store_true", help="report as the step 'train' reads it")
    for command in (first, then):
        command.add_argument("job", type=Path, help="the job's JSON file")
    options = parser.parse_args(arguments)
    try:
        if options.command == "prepare":
            job = prepare(load_line(options.line), options.job, Workspace.from_environment())
            say(f"{options.job}: {len(job.images)} images to fit; the model will be stored in {job.folder}")
        else:
            fit_job(options.job, tell=options.tell)
    except CsflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
