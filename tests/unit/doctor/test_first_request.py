"""The first request of an environment shows whether a text-only model can play it."""

from pathlib import Path

import pytest

from rollout.config.load import Config, load_config
from rollout.doctor.checks import run_checks
from rollout.doctor.results import CheckStatus, exit_code
from tests.unit.doctor.template_setups import CONFIGS, ONE_QUESTION, result_of, write_environment

COLORS = CONFIGS / "color_codeword.yaml"
FIRST_REQUEST = "first request"


def text_only(directory: Path, body: str, more: str = "") -> Config:
    return load_config(write_environment(directory, body, more), ["model.renderer=template"])


@pytest.mark.parametrize("renderer", ["template", "qwen3"])
def test_an_environment_with_images_and_a_text_renderer_is_bad_and_the_fix_works(renderer: str) -> None:
    config = load_config(COLORS, [f"model.renderer={renderer}"])
    assert exit_code(run_checks(config, live=False)) == 1
    bad = result_of(FIRST_REQUEST, config)
    assert bad.status is CheckStatus.BAD
    assert bad.message.startswith("messages[1] of rollout.environments.color_codeword:ColorCodeword contains an image")
    assert "set model.renderer to the one of qwen3-vl, " in (bad.fix or "")
    assert exit_code(run_checks(load_config(COLORS, ["model.renderer=qwen3-vl"]), live=False)) == 0


def test_the_renderer_of_the_model_type_is_the_fix(tmp_path: Path, tiny_model: Path) -> None:
    for file in tiny_model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    bad = result_of(FIRST_REQUEST, load_config(COLORS, ["model.renderer=template", f"model.path={tmp_path}"]))
    assert bad.fix == "set model.renderer to qwen2.5-vl. Or play an environment without images"


def test_a_request_that_the_template_refuses_is_bad(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text(
        "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    body = "await model.chat([{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hello?'}])"
    settings = ["model.renderer=template", f"model.template.file={tmp_path}/chat.jinja"]
    bad = result_of(FIRST_REQUEST, load_config(write_environment(tmp_path, body), settings))
    assert bad.status is CheckStatus.BAD
    assert f"{tmp_path}/chat.jinja refuses this conversation: no system." in bad.message


def test_a_request_that_is_rendered_is_ok(tmp_path: Path) -> None:
    found = result_of(FIRST_REQUEST, text_only(tmp_path, ONE_QUESTION))
    assert (found.status, found.message) == (CheckStatus.OK, "it is rendered: 1 message, no tools, no images")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("raise ValueError('no disc')", "Chat failed before it asked the model"),
        ("return None", "Chat did not ask the model for its first task."),
    ],
)
def test_an_environment_that_does_not_ask_is_not_called_ok(tmp_path: Path, body: str, problem: str) -> None:
    config = text_only(tmp_path, body)
    found = result_of(FIRST_REQUEST, config)
    assert (found.status, problem in found.message) == (CheckStatus.UNKNOWN, True)
    assert exit_code(run_checks(config, live=False)) == 3


def test_an_environment_that_plays_a_program_is_left_to_the_option_agent(tmp_path: Path) -> None:
    found = result_of(FIRST_REQUEST, text_only(tmp_path, "async with model.endpoint(): pass"))
    assert (found.status, found.message) == (
        CheckStatus.NOTHING,
        "Chat plays a program, so its requests are not known; --agent plays it.",
    )


def test_an_environment_that_waits_for_ever_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.doctor.first_request._TIMEOUT", 0.05)
    found = result_of(FIRST_REQUEST, text_only(tmp_path, "import asyncio; await asyncio.Event().wait()"))
    assert (found.status, found.message) == (
        CheckStatus.NOTHING,
        "Chat did not ask the model within 0.05 s, so its requests are not known.",
    )


def test_the_environment_is_closed_afterwards(tmp_path: Path) -> None:
    mark = tmp_path / "closed"
    more = f"    async def close(self):\n        open({str(mark)!r}, 'w').close()\n"
    assert result_of(FIRST_REQUEST, text_only(tmp_path, ONE_QUESTION, more)).status is CheckStatus.OK
    assert mark.exists()


SHARED = (
    "    from contextlib import asynccontextmanager\n"
    "    @classmethod\n    @asynccontextmanager\n    async def shared(cls, settings):\n        yield 'Hello?'\n"
)
SHARED_QUESTION = "await model.chat([{'role': 'user', 'content': self.shared_resources}])"


def test_an_environment_that_may_be_expensive_is_begun_only_with_live(tmp_path: Path) -> None:
    config = text_only(tmp_path, SHARED_QUESTION, SHARED)
    quick = result_of(FIRST_REQUEST, config)
    assert (quick.status, "--live begins one" in quick.message) == (CheckStatus.NOTHING, True)
    assert result_of(FIRST_REQUEST, config, live=True).status is CheckStatus.OK


def test_nothing_is_begun_in_a_set_up_that_is_bad(tmp_path: Path) -> None:
    config = load_config(
        write_environment(tmp_path, "1 / 0"), ["model.renderer=template", f"images.allow=[{tmp_path}/no]"]
    )
    assert FIRST_REQUEST not in [result.subject for result in run_checks(config, live=False)]
