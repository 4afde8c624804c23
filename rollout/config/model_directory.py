"""What `model.path` may be: a directory, or `builtin:tiny` for the small model that this package ships."""

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
"""The directories of the models that this package ships, by the name that stands for each."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class ModelNotFound(ConfigurationError):
    """There is no model at `model.path`."""


def resolve_model_path(path: Path, directory: Path) -> Path:
    """Return the directory of a model; a relative path is relative to `directory`.

    Raises:
        ModelNotFound: the package ships no model of this name.
        PathUnusable: this can be no path.
    """
    name = str(path)
    if not name.startswith("builtin:"):
        return resolve_path(expand_home(path), directory)
    if name not in BUILTIN_MODELS:
        raise ModelNotFound(f"there is no model of this name; the package ships {', '.join(BUILTIN_MODELS)}")
    return BUILTIN_MODELS[name]


def written_model_path(path: Path) -> str:
    """Return what a YAML says for this directory, so that a built-in model has the same name on every machine."""
    return next((name for name, directory in BUILTIN_MODELS.items() if directory == path), str(path))


def require_weights(model: str) -> None:
    """Raise ModelNotFound for a built-in model, named or as its directory: it has no weights for a network."""
    directories = {directory.resolve() for directory in BUILTIN_MODELS.values()}
    if model.startswith("builtin:") or Path(model).expanduser().resolve() in directories:
        raise ModelNotFound(
            f"{model} has no weights, so only `rollout serve embedded` serves it. Name a checkpoint; "
            "`python -m rollout.serving.tiny_model DIRECTORY` makes a small one."
        )


def require_model(path: Path, config_file: Path) -> None:
    """Check that there is something at `model.path` of this YAML file.

    Raises:
        ModelNotFound: nothing is; the message says where was looked, and how to download what is named like a model.
    """
    if path.exists():
        return
    directory = config_file.resolve().parent
    written = os.path.relpath(path, directory)
    message = f"{config_file}: model.path: there is no {path}. A relative path is relative to the YAML file."
    if _HUB_NAME.fullmatch(written) and not (directory / written).parent.exists():
        target = Path("models", Path(written).name)
        command = shlex.join(["hf", "download", written, "--local-dir", str(directory / target)])
        message += (
            f" If {written} is a model of the Hugging Face Hub, download it with `{command}`, and write"
            f" `path: {target}`. Nothing is downloaded by itself; `--exclude '*.safetensors'` leaves out the weights,"
            " which only the engine needs."
        )
    raise ModelNotFound(message)
