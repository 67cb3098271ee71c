"""Serve detector directories in the foreground: ``python -m csflow.adapters.serving``.

The detectors are named by ``--model LINE=DIRECTORY``, once a line, or in a file (``--lines``) that is watched.

A KServe ``ServingRuntime`` names one detector by ``--model-dir`` (default ``/mnt/models``, where KServe mounts it) and
``--model-name`` (default: the line that the directory was made for). KServe's spellings with underscores are accepted
as well.
"""

from __future__ import annotations

import argparse
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from csflow.adapters.serving import LOOPBACK, ServedDetector, ServerOptions, serve_detectors
from csflow.adapters.serving.lines_file import WATCH_SECONDS, read_lines
from csflow.adapters.serving.tls import Certificate
from csflow.adapters.serving.tokens import Tokens
from csflow.config.section import bytes_of
from csflow.detector.directory import line_of
from csflow.errors import CsflowError, ModelError, UsageError
from csflow.system.ports import bind
from csflow.system.processes import raised_on_sigterm
from csflow.system.threads import prepare_threads

MOUNTED = Path("/mnt/models")
"""Folder at which KServe mounts the detector that ``storageUri`` names."""

_SINGLE = ("model_dir", "model_name", "model_version")
"""Options that describe the only detector."""

_LINES_HELP = "JSON or YAML file {LINE: {directory: …, version: …}}, instead of --model."


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, serve until a signal, and return the exit status."""
    options = _parser().parse_args(arguments)
    prepare_threads()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        read = _in_file if options.lines else _many if options.model else _one
        read(options)  # mistakes are reported before anything is bound
        chosen = _chosen(options)
        # Process 1 of a container ignores a signal without a handler, but one that arrives while models are loaded
        # must end the process too. The server installs its own handlers later.
        with raised_on_sigterm():
            serve_detectors(lambda: read(options), _listeners(options), chosen)
    except CsflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m csflow.adapters.serving", description="Serve detector directories until a signal."
    )
    add = parser.add_argument
    add("--model", action="append", metavar="LINE=DIRECTORY", help="May be repeated.")
    add("--version", action="append", default=[], metavar="LINE=VERSION", help="Named in responses.")
    add("--lines", type=Path, metavar="FILE", help=f"{_LINES_HELP} Looked at every {WATCH_SECONDS:g} s, and at SIGHUP.")
    add("--model-dir", "--model_dir", type=Path, metavar="DIRECTORY", help=f"The only detector (default {MOUNTED}).")
    add("--model-name", "--model_name", metavar="NAME", help="Name of the only detector (default: its line).")
    add("--model-version", metavar="VERSION", help="Version of the only detector (default: from its digest).")
    add("--host", default=LOOPBACK, help="Address to bind (default %(default)s).")
    add("--port", "--http_port", type=int, default=8080, help="REST port (default %(default)s); 0 takes a free one.")
    add("--grpc-port", "--grpc_port", type=int, default=0, help="gRPC port; 0 (default) for no gRPC.")
    add("--tokens", type=Path, metavar="FILE", help="Let in clients with these tokens only (csflow token makes one).")
    add("--tls-cert", type=Path, metavar="FILE", help="Certificate and its chain (PEM), for encrypted connections.")
    add("--tls-key", type=Path, metavar="FILE", help="Private key of the certificate (PEM).")
    add("--max-memory", metavar="SIZE", help="Most that loaded detectors may take, such as 4Gi (default: no bound).")
    add("--docs", action="store_true", help="Describe the REST routes at /docs and /openapi.json.")
    add("--fd", type=int, action="append", help="Inherited bound socket, instead of host and port.")
    return parser


def _chosen(options: argparse.Namespace) -> ServerOptions:
    return ServerOptions(
        grpc_port=options.grpc_port or None,
        tokens=Tokens.configured(options.tokens),
        certificate=Certificate.configured(options.tls_cert, options.tls_key),
        max_memory=None if options.max_memory is None else bytes_of(options.max_memory),
        documented=options.docs,
        watch_seconds=WATCH_SECONDS if options.lines else None,
    )


def _in_file(options: argparse.Namespace) -> dict[str, ServedDetector]:
    others = [name for name in ("model", "version", *_SINGLE) if getattr(options, name)]
    if others:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise UsageError(f"{given} and --lines exclude each other: the file names all detectors.")
    return read_lines(options.lines)


def _many(options: argparse.Namespace) -> dict[str, ServedDetector]:
    if given := [f"--{name.replace('_', '-')}" for name in _SINGLE if getattr(options, name) is not None]:
        raise UsageError(f"{', '.join(given)} and --model exclude each other: the first names the only detector.")
    versions = dict(_named(text) for text in options.version)
    return {
        name: ServedDetector(Path(directory).resolve(), versions.get(name, ""))
        for name, directory in (_named(text) for text in options.model)
    }


def _one(options: argparse.Namespace) -> dict[str, ServedDetector]:
    if options.version:
        raise UsageError("--version belongs to --model LINE=DIRECTORY. Use --model-version.")
    directory = options.model_dir or MOUNTED
    # The directory's line is read even if a name is given, so that a wrong mount is reported before anything is loaded.
    try:
        line = line_of(directory)
    except ModelError as error:
        raise ModelError(f"{error} Mount one there, or name it with --model-dir.") from error
    return {options.model_name or line: ServedDetector(directory.resolve(), options.model_version or "")}


def _listeners(options: argparse.Namespace) -> list[socket.socket]:
    if options.fd is None:
        return [bind(options.host, options.port)]
    return [socket.socket(fileno=descriptor) for descriptor in options.fd]


def _named(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator and value):
        raise UsageError(f"Expected LINE=VALUE, got {text!r}.")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
