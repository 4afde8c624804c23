"""Finds the directory of the model. `model.path` is a path, or `builtin:tiny` for the small model that we ship."""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from rollout.errors import ConfigurationError
from rollout.paths import expand_home, resolve_path

BUILTIN_MODELS: Mapping[str, Path] = MappingProxyType(
    {"builtin:tiny": Path(__file__).parents[1] / "serving" / "tiny_qwen3_vl"}
)
"""The directories of the models that this package ships, by their names in a YAML."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class ModelNotFound(ConfigurationError):
    """The model does not exist, or it has no weights."""


def resolve_model_path(path: Path, directory: Path) -> Path:
    """Return the directory of a model; a relative path is relative to `directory`.

    Raises:
        ModelNotFound: the path begins with `builtin:`, and the package ships no model with this name.
        PathUnusable: the path is not usable.
    """
    name = str(path)
    if not name.startswith("builtin:"):
        return resolve_path(expand_home(path), directory)
    if name not in BUILTIN_MODELS:
        raise ModelNotFound(f"unknown model; the package ships {', '.join(BUILTIN_MODELS)}")
    return BUILTIN_MODELS[name]


def written_model_path(path: Path) -> str:
    """Return how a YAML names a model's directory: by the name of a built-in model, or by its path."""
    return next((name for name, directory in BUILTIN_MODELS.items() if directory == path), str(path))


def require_weights(model: str) -> None:
    """Raise ModelNotFound for a built-in model or its directory, because it has no weights."""
    directories = {directory.resolve() for directory in BUILTIN_MODELS.values()}
    if model.startswith("builtin:") or Path(model).expanduser().resolve() in directories:
        raise ModelNotFound(
            f"{model} has no weights, so only `rollout serve embedded` serves it. Give the directory of a "
            "checkpoint; `python -m rollout.serving.tiny_model DIRECTORY` makes a small one."
        )


def require_model(path: Path, config_file: Path) -> None:
    """Check that the `model.path` of this YAML file exists.

    Raises:
        ModelNotFound: the path does not exist. If it may be a model's name on the Hugging Face Hub, the message says
            how to download the model.
    """
    if path.exists():
        return
    directory = config_file.resolve().parent
    written = os.path.relpath(path, directory)
    message = f"{config_file}: model.path: {path} does not exist. A relative path is relative to the YAML file."
    if _HUB_NAME.fullmatch(written) and not (directory / written).parent.exists():
        target = Path("models", Path(written).name)
        command = shlex.join(["hf", "download", written, "--local-dir", str(directory / target)])
        message += (
            f" If {written} is a model of the Hugging Face Hub, download it with `{command}`, and write"
            f" `path: {target}`. Rollout downloads nothing itself; `--exclude '*.safetensors'` leaves out the weights,"
            " which only the engine needs."
        )
    raise ModelNotFound(message)
