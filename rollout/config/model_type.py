"""Compares the renderer of a configuration with the `model_type` in the checkpoint's config.json."""

import json
from pathlib import Path
from typing import Any

from renderers_adapter.families import FAMILIES, TEMPLATE_FAMILY, RendererFamily, get_family
from rollout.config.sections import ModelConfig
from rollout.errors import ConfigurationError

_CONFIG_FILE = "config.json"
_VISION_SECTION = "vision_config"


def check_model_type(model: ModelConfig) -> str:
    """Check that the renderer belongs to the checkpoint's model, and return the finding.

    Only a model that takes images names its chat format by its `model_type`. Text models of one type have many chat
    formats, so another text renderer is no error.

    Raises:
        UnknownRenderer: no family has the renderer's name.
        ConfigurationError: the renderer belongs to another model, or config.json is not JSON.
    """
    family = get_family(model.renderer)
    path = model.path / _CONFIG_FILE
    if not path.is_file():
        return f"no {_CONFIG_FILE}, so its model_type was not compared"
    values = _read_config(path)
    model_type = _model_type(values)
    fitting = _fitting_families(model_type)
    names = " or ".join(fitting_family.name for fitting_family in fitting)
    if family.uses_checkpoint_template:
        takes_images = _VISION_SECTION in values or any(fitting_family.geometry for fitting_family in fitting)
        return _describe_template(model_type, names, takes_images=takes_images)
    if not fitting:
        return (
            f"model_type {model_type!r} does not say which renderer fits; {TEMPLATE_FAMILY} uses the checkpoint's own "
            "chat template"
        )
    if family in fitting:
        return f"model_type {model_type} fits"
    if family.geometry is None and all(fitting_family.geometry is None for fitting_family in fitting):
        return f"model_type {model_type} usually has the renderer {names}"
    raise ConfigurationError(
        f"{path} has the model_type {model_type}, but the renderer {family.name} belongs to "
        f"{_describe_models(family.model_types)}. Set model.renderer to {names}, or model.path to another checkpoint."
    )


def fitting_renderers(directory: Path) -> list[str]:
    """Return the names of the built-in renderers that belong to the `model_type` of a checkpoint.

    Raises:
        ConfigurationError: config.json is not JSON.
    """
    path = directory / _CONFIG_FILE
    return [family.name for family in _fitting_families(_model_type(_read_config(path)))] if path.is_file() else []


def _model_type(values: dict[str, Any]) -> str | None:
    model_type = values.get("model_type")
    return model_type if isinstance(model_type, str) else None


def _fitting_families(model_type: str | None) -> list[RendererFamily]:
    return [family for family in FAMILIES.values() if model_type in family.model_types]


def _describe_template(model_type: str | None, names: str, *, takes_images: bool) -> str:
    finding = f"the checkpoint's own chat template fits model_type {model_type!r}"
    if names:
        finding += f", which has the built-in renderer {names}, too"
    return finding + ("; this model takes images, but the renderer template plays text only" if takes_images else "")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read ({error}). Copy it from the checkpoint again.") from None
    return values if isinstance(values, dict) else {}


def _describe_models(model_types: tuple[str, ...]) -> str:
    return f"models of the type {' or '.join(model_types)}" if model_types else "text models"
