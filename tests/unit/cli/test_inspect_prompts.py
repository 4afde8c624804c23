"""`rollout inspect` shows how the prompt of each turn was made, and the run leaves no directory without a rollout."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.unit.cli.in_process import run_cli, set_options

COUNTING = (
    "{{ messages | length }} in all\x1b[31m\n"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant{{ '\\n' }}"
)


@pytest.fixture(scope="module")
def run_directory(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Play a run whose template changes its first line at every turn; return its directory."""
    directory = tmp_path_factory.mktemp("changing")
    model = shutil.copytree(tiny_model, directory / "model")
    (model / "chat_template.jinja").write_text(COUNTING, "utf-8")
    assert run_cli("init", str(directory / "env-p"), "--template", "chat").returncode == 0
    options = set_options(
        f"model.path={model}", "model.renderer=template", "tasks.count=1", "engine.sampling.temperature=0"
    )
    ran = run_cli("run", str(directory / "env-p" / "env_p.yaml"), "--json", *options)
    report = json.loads(ran.stdout)
    assert set(report["prompts"]["rendered"]) == {"earlier_text"}
    return str(report["run_dir"])


def test_a_turn_shows_its_reason_and_the_changed_text_on_a_line_each(run_directory: str) -> None:
    shown = run_cli("inspect", run_directory, "000000.0").stdout
    assert "prompt rendered: first of a rollout" in shown
    assert "prompt rendered: earlier text changed" in shown
    assert re.search(r'earlier text at turn 0: "1 in all\\u001b\[31m.*"\n    the same text now: +"3 in all', shown)
    assert "\x1b" not in shown


def test_the_json_has_the_source_and_the_changed_text_of_each_turn(run_directory: str) -> None:
    first, second, *_ = json.loads(run_cli("inspect", run_directory, "000000.0", "--json").stdout)["prompts"]
    assert first == {"turn": 0, "node": 1, "source": "first"}
    assert (second["source"], second["earlier_turn"]) == ("earlier_text", 0)
    assert (second["text_before"][:8], second["text_now"][:8]) == ("1 in all", "3 in all")


def test_without_the_tokenizer_the_reason_is_shown_without_text(run_directory: str, tmp_path: Path) -> None:
    moved = shutil.copytree(run_directory, tmp_path / "run")
    config = (moved / "config.yaml").read_text("utf-8")
    (moved / "config.yaml").write_text(re.sub(r"path: .*/model\n", f"path: {tmp_path}\n", config), "utf-8")
    shown = run_cli("inspect", str(moved), "000000.0")
    assert shown.returncode == 0
    assert "prompt rendered: earlier text changed" in shown.stdout
    assert "rollout: the earlier text that changed is not shown: No tokenizer at" in shown.stderr


def test_a_run_that_ends_before_its_first_rollout_leaves_no_directory(
    color_codeword: list[str], tmp_path: Path
) -> None:
    assert run_cli("run", *color_codeword, "--set", f"model.path={tmp_path}/missing").returncode == 2
    assert list((tmp_path / "runs").iterdir()) == []
