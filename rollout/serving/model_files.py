"""Reads the JSON files of a model's directory that our engines need."""

import json
from pathlib import Path
from typing import Any

from renderers_adapter.errors import AdapterError


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of a configuration file.

    Raises:
        AdapterError: the file cannot be read, or is not a JSON object.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read ({error}). Copy it from the checkpoint again.") from None
    if not isinstance(values, dict):
        raise AdapterError(f"{path} is not a JSON object. Copy it from the checkpoint again.")
    return values
