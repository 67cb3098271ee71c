"""``python -m csflow.adapters.serving``: serve detector directories in the foreground."""

from __future__ import annotations

import argparse
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from csflow.adapters.serving import LOOPBACK, ServedDetector, serve
from csflow.errors import CsflowError, UsageError
from csflow.ports import bind


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, serve until a signal, and return the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        versions = dict(_named(text) for text in options.version)
        models = {
            name: ServedDetector(Path(directory), versions.get(name, ""))
            for name, directory in (_named(text) for text in options.model)
        }
        serve(models, _listeners(options), grpc_port=options.grpc_port or None)
    except CsflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m csflow.adapters.serving", description=__doc__)
    parser.add_argument("--model", action="append", required=True, metavar="LINE=DIRECTORY", help="May be repeated.")
    parser.add_argument("--version", action="append", default=[], metavar="LINE=VERSION", help="Shown in answers.")
    parser.add_argument("--host", default=LOOPBACK, help="Address to bind (default %(default)s).")
    parser.add_argument("--port", type=int, default=8080, help="REST port (default %(default)s); 0 takes a free one.")
    parser.add_argument("--grpc-port", type=int, default=0, help="gRPC port; 0 (default) for no gRPC.")
    parser.add_argument("--fd", type=int, action="append", help="Inherited bound socket, instead of host and port.")
    return parser


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
