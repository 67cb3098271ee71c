"""``csflow serve``: answer requests in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from csflow.cli.options import require_line_names
from csflow.errors import UsageError
from csflow.runs.services import Services

if TYPE_CHECKING:
    from csflow.adapters.serving import ServedDetector, ServerOptions


PortOption: TypeAlias = Annotated[int, typer.Option(min=0, max=65535, help="REST port; 0 takes a free one.")]
GrpcPortOption: TypeAlias = Annotated[int, typer.Option(min=0, max=65535, help="gRPC port; 0 for no gRPC.")]
AllOption: TypeAlias = Annotated[bool, typer.Option("--all", help="Serve the champion of every line that has one.")]
WatchOption: TypeAlias = Annotated[
    float | None,
    typer.Option(min=1, metavar="SECONDS", help="Look this often for new champions.", show_default="at SIGHUP only"),
]
TokensOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Let in clients with these tokens only.", show_default="CSFLOW_TOKENS, or all"),
]
CertificateOption: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Certificate and its chain (PEM).", show_default="no encryption")
]
KeyOption: TypeAlias = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Private key of the certificate (PEM).")
]
MemoryOption: TypeAlias = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Most that loaded detectors may take: 4Gi.", show_default="no bound")
]
DocsOption: TypeAlias = Annotated[bool, typer.Option("--docs", help="Describe the routes at /docs and /openapi.json.")]


def serve_lines(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="LINE", help="LINE (its champion), LINE@VERSION, or a detector directory."),
    ] = None,
    port: PortOption = 8080,
    host: Annotated[str, typer.Option(help="Address to bind; the default answers this machine only.")] = "127.0.0.1",
    grpc_port: GrpcPortOption = 0,
    all_lines: AllOption = False,
    watch: WatchOption = None,
    tokens: TokensOption = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
    max_memory: MemoryOption = None,
    docs: DocsOption = False,
) -> None:
    """Serve champions or detector directories, of one or several lines, in one server until Ctrl-C.

    Tokens, certificate and champions are read again at SIGHUP, without a gap.
    """
    from csflow.adapters.serving import ServerOptions, serve_detectors
    from csflow.adapters.serving.tls import Certificate
    from csflow.adapters.serving.tokens import Tokens
    from csflow.config.section import bytes_of
    from csflow.system.ports import bind

    services = Services.from_environment()
    if bool(names) == all_lines:
        raise UsageError("Say what to serve: csflow serve LINE…, or csflow serve --all.")
    options = ServerOptions(
        grpc_port=grpc_port or None,
        tokens=Tokens.configured(tokens),
        certificate=Certificate.configured(tls_cert, tls_key),
        max_memory=None if max_memory is None else bytes_of(max_memory),
        documented=docs,
        watch_seconds=watch,
    )
    with bind(host, port) as listener:
        models = _wanted(services, names)
        if len(models) < len(names or []):
            raise UsageError("Two detectors of the same line cannot be served under one name. Serve them separately.")
        _print_example(list(models), f"{host}:{listener.getsockname()[1]}", f"{host}:{grpc_port}", options)
        serve_detectors(lambda: _wanted(services, names), [listener], options)


def _wanted(services: Services, names: list[str] | None) -> dict[str, ServedDetector]:
    """Return the detectors that are named, or all champions."""
    return dict(_named(services, name) for name in names) if names else _champions(services)


def _champions(services: Services) -> dict[str, ServedDetector]:
    lines = [line for line in require_line_names() if services.registry.find_champion(line)]
    if not lines:
        raise UsageError("No line has a champion yet. Train one: csflow run LINE")
    return dict(_named(services, line) for line in lines)


def _named(services: Services, name: str) -> tuple[str, ServedDetector]:
    """Return the name to serve a detector under, and the detector itself."""
    from csflow.adapters.serving import ServedDetector
    from csflow.detector.directory import line_of

    if Path(name).is_dir():
        return line_of(Path(name)), ServedDetector(Path(name).resolve())
    from csflow.config import load_line
    from csflow.release.locate import locate_detector

    directory = locate_detector(name, services)
    stem, _, version = name.partition("@")
    line = load_line(stem).line
    return line, ServedDetector(directory, str(services.registry.find_version(line, version or "champion").version))


def _print_example(lines: list[str], address: str, grpc_url: str, options: ServerOptions) -> None:
    url = f"http://{address}" if options.certificate is None else f"https://{address}"
    curl = "curl -s" if options.tokens is None else 'curl -s -H "Authorization: Bearer $TOKEN"'
    typer.echo(f"Serving {', '.join(lines)} at {url}" + (f", gRPC at {grpc_url}" if options.grpc_port else ""))
    typer.echo("Ready when this prints true:")
    typer.echo(f"  {curl} {url}/v2/models/{lines[0]}/ready")
    typer.echo("Then, for an image file part.png:")
    typer.echo("""  printf '{"instances": [{"image": {"b64": "%s"}, "boxes": true}]}' "$(base64 < part.png)" |""")
    typer.echo(f"    tr -d '\\n' | {curl} {url}/v1/models/{lines[0]}:predict -H 'Content-Type: application/json' -d @-")
    typer.echo("Stop with Ctrl-C.")
