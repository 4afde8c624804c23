"""The renderer and the `model_type` of the checkpoint."""

import json
from pathlib import Path

import pytest

from rollout.config.load import Config, load_config
from rollout.config.model_type import check_model_type
from rollout.errors import ConfigurationError


@pytest.fixture
def repository_config(repository: Path) -> Path:
    return repository / "configs" / "color_codeword.yaml"


def configured(file: Path, directory: Path, renderer: str, model_type: object) -> Config:
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    return load_config(file, [f"model.path={directory}", f"model.renderer={renderer}"])


@pytest.mark.parametrize(
    ("renderer", "model_type"),
    [("qwen3-vl", "qwen3_vl_moe"), ("qwen3.8", "qwen3_5"), ("qwen2.5-vl", "qwen2_5_vl"), ("prime-qwen3", "qwen3")],
)
def test_a_renderer_of_the_model_fits(repository_config: Path, tmp_path: Path, renderer: str, model_type: str) -> None:
    config = configured(repository_config, tmp_path, renderer, model_type)
    assert check_model_type(config.model) == f"model_type {model_type} fits"


@pytest.mark.parametrize("renderer", ["qwen3.5", "qwen3", "qwen2.5-vl", "kimi-k2.5", "llama-3"])
def test_a_renderer_of_another_model_with_images_is_an_error(
    repository_config: Path, tmp_path: Path, renderer: str
) -> None:
    config = configured(repository_config, tmp_path, renderer, "qwen3_vl")
    with pytest.raises(ConfigurationError, match=r"model_type qwen3_vl, .* Set model\.renderer to qwen3-vl, "):
        check_model_type(config.model)


def test_a_renderer_with_images_is_an_error_for_a_text_model(repository_config: Path, tmp_path: Path) -> None:
    config = configured(repository_config, tmp_path, "qwen3-vl", "qwen3")
    with pytest.raises(ConfigurationError, match=r"Set model\.renderer to prime-qwen3 or qwen3, "):
        check_model_type(config.model)


@pytest.mark.parametrize(("renderer", "model_type"), [("deepseek-r1", "qwen3"), ("llama-3", "gpt_oss")])
def test_another_text_renderer_is_only_reported_for_a_text_model(
    repository_config: Path, tmp_path: Path, renderer: str, model_type: str
) -> None:
    config = configured(repository_config, tmp_path, renderer, model_type)
    assert check_model_type(config.model).startswith(f"model_type {model_type} usually has the renderer ")


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "deepseek_v3", "new_model", None])
def test_a_type_of_many_formats_is_no_error(repository_config: Path, tmp_path: Path, model_type: str | None) -> None:
    config = configured(repository_config, tmp_path, "qwen3-vl", model_type)
    assert check_model_type(config.model) == (
        f"model_type {model_type!r} does not say which renderer fits; template uses the checkpoint's own chat template"
    )


@pytest.mark.parametrize(
    ("model_type", "more"),
    [
        ("llama", ""),
        ("qwen3", ", which has the built-in renderer prime-qwen3 or qwen3, too"),
        (
            "qwen3_vl",
            ", which has the built-in renderer qwen3-vl, too; this model takes images, but the renderer template plays "
            "text only",
        ),
    ],
)
def test_the_renderer_of_a_template_says_what_else_fits(
    repository_config: Path, tmp_path: Path, model_type: str, more: str
) -> None:
    config = configured(repository_config, tmp_path, "template", model_type)
    assert check_model_type(config.model) == (
        f"the checkpoint's own chat template fits model_type {model_type!r}{more}"
    )


def test_the_renderer_of_a_template_says_that_it_plays_no_images(repository_config: Path, tmp_path: Path) -> None:
    config = load_config(repository_config, [f"model.path={tmp_path}", "model.renderer=template"])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "vision_config": {}}))
    assert check_model_type(config.model).endswith(
        "; this model takes images, but the renderer template plays text only"
    )


def test_a_model_without_a_config_file_is_not_compared(repository_config: Path) -> None:
    config = load_config(repository_config)
    assert check_model_type(config.model) == "no config.json, so its model_type was not compared"


def test_a_config_file_that_is_not_json_is_an_error(repository_config: Path, tmp_path: Path) -> None:
    config = configured(repository_config, tmp_path, "qwen3-vl", "qwen3_vl")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"config\.json cannot be read"):
        check_model_type(config.model)
