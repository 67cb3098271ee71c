"""Write and read the files that ablations keep in the workspace; a damaged one is put aside and made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from csflow.config import Section
from csflow.errors import DamagedFileError
from csflow.system.seals import put_aside, read_sealed_json, write_sealed_json

Kept = TypeVar("Kept", bound=Section)


def write_kept(file: Path, value: Section) -> None:
    """Write a value as sealed JSON, atomically."""
    write_sealed_json(file, value.model_dump(mode="json"))


def read_kept(file: Path, kind: type[Kept]) -> Kept | None:
    """Read a value that :func:`write_kept`, or a csflow before 0.6, wrote.

    Args:
        file: The file.
        kind: Class of the value.

    Returns:
        The value; None if there is no file, or a damaged one, which is put aside.
    """
    if not file.exists():
        return None
    try:
        return kind.model_validate_json(json.dumps(read_sealed_json(file, required=False)))
    except DamagedFileError as error:
        put_aside(file, str(error))
    except ValidationError as error:
        put_aside(file, f"{file} does not hold what it should: {error.errors()[0]['msg']}.")
    return None
