"""``csflow token``: make a token for a client of the model server."""

from __future__ import annotations

from typing import Annotated

import typer

from csflow.cli.options import JsonOption, print_json


def make_token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose token it is.", show_default="nobody's")] = "",
    as_json: JsonOption = False,
) -> None:
    """Make a token for a client of the model server; it is shown once, and only its hash is kept."""
    from csflow.adapters.serving.tokens import new_token

    token, entry = new_token(name)
    if as_json:
        print_json({"token": token, "line": entry})
        return
    typer.echo("Token, shown only now. The client sends it as Authorization: Bearer TOKEN")
    typer.echo(f"  {token}")
    typer.echo("Line for the file of csflow serve --tokens FILE, which only its owner may read (chmod 600):")
    typer.echo(f"  {entry}")
