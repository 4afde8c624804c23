"""`rollout serve vllm` loads our plugin if it is installed, and all other plugins as before."""

from pathlib import Path

import pytest

from rollout.serving.vllm import VllmSettings

OURS = "[vllm.endpoint_plugins]\nmmraw = rollout_vllm.plugin:MMRawPlugin\n"
OTHERS = """[vllm.endpoint_plugins]
another = other:Plugin
[vllm.general_plugins]
lora = other:lora
[console_scripts]
serve = other:serve
"""


@pytest.fixture
def executable(tmp_path: Path) -> Path:
    """The vllm executable in an environment with plugins of others."""
    install(tmp_path, "other", OTHERS)
    found = tmp_path / "bin" / "vllm"
    found.parent.mkdir()
    found.touch()
    return found


def install(environment: Path, name: str, points: str) -> None:
    info = environment / "lib" / "python3.12" / "site-packages" / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)


def plugins(executable: Path) -> str | None:
    settings = VllmSettings(model="some/model", media_directory=Path("runs"), executable=executable)
    return settings.environment().get("VLLM_PLUGINS")


def test_without_our_plugin_the_variable_is_not_set(executable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert plugins(executable) is None


def test_our_plugin_is_named_with_all_plugins_that_load_by_default(
    executable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    install(tmp_path, "rollout_vllm", OURS)
    assert plugins(executable) == "lora,mmraw"


@pytest.mark.parametrize(("named", "expected"), [("another", "another,mmraw"), ("mmraw,x", "mmraw,x")])
def test_plugins_that_the_user_named_stay_named(
    executable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, expected: str
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", named)
    install(tmp_path, "rollout_vllm", OURS)
    assert plugins(executable) == expected
