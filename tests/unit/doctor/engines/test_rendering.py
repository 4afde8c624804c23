"""The check `rendering`, with servers that render with right and wrong chat templates."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from renderers_adapter.adapter import RendererAdapter
from rollout.config.load import load_config
from rollout.config.model_directory import BUILTIN_MODELS
from rollout.config.renderer_options import renderer_options
from rollout.doctor.engines.rendering import check_rendering, rendering_fix
from rollout.doctor.engines.under_test import CheckFailed, CheckNotMade, EngineUnderTest, NothingToCheck
from rollout.engine.client import EngineClient
from rollout.engine.errors import EngineError, EngineMisconfigured
from tests.unit.doctor.engines.template_server import TemplateServer

_TEMPLATES = Path("rollout/serving/tiny_model/templates")
_URL = "http://engine"

Check = Callable[..., Any]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the small model, so that a test can add files."""
    return shutil.copytree(BUILTIN_MODELS["builtin:tiny"], tmp_path / "model")


@pytest.fixture
def templates(repository: Path, model: Path) -> dict[str, str]:
    return {
        "qwen3-vl": (model / "chat_template.jinja").read_text("utf-8"),
        "qwen2.5-vl": (repository / _TEMPLATES / "qwen2_5_vl.jinja").read_text("utf-8"),
        "qwen3": (repository / _TEMPLATES / "qwen3.jinja").read_text("utf-8"),
    }


@pytest.fixture
def serve() -> Callable[..., TemplateServer]:
    def start(template: str, **options: Any) -> TemplateServer:
        return TemplateServer(template, RendererAdapter.open(BUILTIN_MODELS["builtin:tiny"], "qwen3-vl"), **options)

    return start


@pytest.fixture
def check(repository: Path, model: Path, tmp_path: Path) -> Check:
    async def run(server: TemplateServer, renderer: str, *overrides: str) -> str:
        keys = ["model.name=tiny", f"model.path={model}", f"model.renderer={renderer}", f"run.directory={tmp_path}"]
        config = load_config(repository / "configs" / "color_codeword.yaml", [*keys, *overrides])
        adapter = RendererAdapter.open(model, renderer, renderer_options(config.model))
        async with EngineClient([_URL], "tiny", timeout=5, transport=server) as client:
            unused: Any = None
            return await check_rendering(EngineUnderTest(_URL, config, adapter, server, client, unused, unused))

    return run


def answer_render_route(server: TemplateServer, answer: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the server one answer for all requests to its render route."""
    send = server.send

    async def answer_render(method: str, url: str, body: bytes, *, session_id: str | None = None) -> tuple[int, bytes]:
        return answer if url.endswith("/render") else await send(method, url, body, session_id=session_id)

    monkeypatch.setattr(server, "send", answer_render)


@pytest.mark.parametrize("mode", ["offload", "inline"])
async def test_the_template_of_the_family_is_no_problem(
    check: Check, serve: Any, templates: dict[str, str], mode: str
) -> None:
    server = serve(templates["qwen3-vl"])
    found = await check(server, "qwen3-vl", f"images.mode={mode}")
    assert found.startswith("the server renders 18 conversations as we do; 12 of them also if the last turn is bridged")
    assert found.splitlines()[1:] == [
        "known difference in white space around contents: the same text has other tokens, because its parts are "
        "encoded separately",
        "known difference in control tokens in a text: control tokens in a text stay text, as model.special_text says",
    ]
    assert "not compared" not in found
    assert len(server.requests) <= 30


async def test_conversations_that_a_family_does_not_support_are_named(
    check: Check, serve: Any, templates: dict[str, str]
) -> None:
    found = await check(serve(templates["qwen2.5-vl"]), "qwen2.5-vl")
    assert found.startswith("the server renders 8 conversations as we do; 5 of them also")
    assert "not compared: a question, tools without a system message (the template of qwen2.5-vl would add" in found


@pytest.mark.parametrize("expands", [False, True], ids=["one pad token for each image", "expanded images"])
async def test_the_tokenizer_route_is_enough(
    check: Check, serve: Any, templates: dict[str, str], expands: bool
) -> None:
    server = serve(templates["qwen3-vl"], routes=("/tokenize",), tokenize_expands_images=expands)
    found = await check(server, "qwen3-vl")
    assert found.startswith("the server renders 18 conversations as we do; 12 of them also")
    assert found.splitlines()[0].endswith(
        "compared by /tokenize, with one token for each image, because there is no render route"
    )


async def test_the_render_route_is_enough(check: Check, serve: Any, templates: dict[str, str]) -> None:
    server = serve(templates["qwen3-vl"], routes=("/v1/chat/completions/render",))
    found = await check(server, "qwen3-vl")
    assert found.startswith("the server renders 18 conversations as we do; 12 of them also")
    assert "/tokenize" not in found


async def test_a_server_without_both_routes_cannot_be_checked(
    check: Check, serve: Any, templates: dict[str, str]
) -> None:
    with pytest.raises(CheckNotMade, match="neither /v1/chat/completions/render nor /tokenize"):
        await check(serve(templates["qwen3-vl"], routes=()), "qwen3-vl")


async def test_our_own_engines_have_nothing_to_check(check: Check, serve: Any, templates: dict[str, str]) -> None:
    server = serve(templates["qwen3-vl"], owner="rollout")
    with pytest.raises(NothingToCheck, match="takes tokens only"):
        await check(server, "qwen3-vl")
    assert server.requests == ["/v1/models"]


async def test_a_server_without_a_parser_of_calls_still_renders_tools(
    check: Check, serve: Any, templates: dict[str, str]
) -> None:
    server = serve(templates["qwen3-vl"], has_call_parser=False)
    assert (await check(server, "qwen3-vl")).startswith("the server renders 18 conversations as we do")
    assert len(server.requests) <= 30


async def test_a_server_that_refuses_every_conversation_cannot_be_checked(check: Check, serve: Any) -> None:
    with pytest.raises(
        CheckNotMade, match=r"no conversation was rendered by both sides: a question, .*: no\)\. Set engine\.urls to"
    ):
        await check(serve("{{ raise_exception('no.') }}"), "qwen3-vl")


async def test_a_server_that_refuses_conversations_that_we_write_is_not_fully_checked(
    check: Check, serve: Any, templates: dict[str, str]
) -> None:
    refusal = "{% if tools %}{{ raise_exception('tools are not allowed.') }}{% endif %}"
    with pytest.raises(CheckNotMade) as reason:
        await check(serve(refusal + templates["qwen3-vl"]), "qwen3-vl")
    refused, equal, *_ = str(reason.value).splitlines()
    assert refused.startswith(
        "the server refuses 9 of 18 conversations, but our renderer writes them: tools without a system message, "
        "tools without a call, a call and its result, a call with arguments of all types and 5 more "
    )
    assert "400: tools are not allowed). Set engine.urls to the root of vLLM itself" in refused
    assert equal.startswith("the server renders 9 conversations as we do; ")


async def test_a_conversation_that_neither_side_writes_is_only_named(
    check: Check, serve: Any, templates: dict[str, str]
) -> None:
    refusal = "{% if tools %}{{ raise_exception('tools are not allowed.') }}{% endif %}"
    found = await check(serve(refusal + templates["qwen2.5-vl"]), "qwen2.5-vl")
    assert found.startswith("the server renders 8 conversations as we do; 5 of them also")
    assert "tools are not allowed" in found


@pytest.mark.parametrize("answer", [(200, b"<html></html>"), (200, b'{"token_ids": "x"}'), (401, b"{}"), (500, b"{}")])
async def test_an_unusable_answer_of_the_server_gets_a_fix(
    check: Check, serve: Any, templates: dict[str, str], monkeypatch: pytest.MonkeyPatch, answer: tuple[int, bytes]
) -> None:
    server = serve(templates["qwen3-vl"])
    answer_render_route(server, answer, monkeypatch)
    with pytest.raises(EngineError) as error:
        await check(server, "qwen3-vl")
    unused: Any = None
    assert "is engine.urls the root of vLLM itself" in str(rendering_fix(unused, error.value))


async def test_a_redirected_render_route_cannot_be_checked(
    check: Check, serve: Any, templates: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(templates["qwen3-vl"])
    answer_render_route(server, (302, b"moved"), monkeypatch)
    with pytest.raises(CheckNotMade, match=r"status 302: moved\)\. Set engine\.urls to the root of vLLM itself"):
        await check(server, "qwen3-vl")


@pytest.mark.parametrize("renderer", ["qwen3.5", "qwen3", "qwen2.5-vl"])
async def test_the_renderer_of_another_family_gets_the_renderer_that_fits(
    check: Check, serve: Any, templates: dict[str, str], renderer: str
) -> None:
    with pytest.raises(CheckFailed) as failure:
        await check(serve(templates["qwen3-vl"]), renderer)
    assert failure.value.fix == "set model.renderer to qwen3-vl"
    assert (await check(serve(templates["qwen3-vl"]), "qwen3-vl")).startswith("the server renders 18")


async def test_the_first_difference_is_shown_with_its_surroundings(
    check: Check, serve: Any, templates: dict[str, str]
) -> None:
    with pytest.raises(CheckFailed) as failure:
        await check(serve(templates["qwen3-vl"]), "qwen3.5")
    assert str(failure.value).splitlines() == [
        "18 of 18 conversations are rendered differently. In 'a question', our prompt differs from the server's:",
        "after:   …nWhich colour is the sky?<|im_end|>\\n<|im_start|>assistant\\n",
        "ours:    «<think>\\n»",
        "server:  «»",
        "also in: a system message, several turns, reasoning before a new question, tools without a system message and "
        "13 more",
    ]


async def test_a_template_argument_that_the_server_sets_gets_the_argument_as_a_fix(
    check: Check, serve: Any, templates: dict[str, str]
) -> None:
    server = serve(templates["qwen3"], template_arguments={"enable_thinking": False}, contents_are_texts=True)
    with pytest.raises(CheckFailed) as failure:
        await check(server, "qwen3")
    assert failure.value.fix == "set model.template.enable_thinking to false"
    found = await check(server, "qwen3", "model.template.enable_thinking=false")
    assert found.startswith("the server renders 15 conversations as we do; 7 of them also")
    (line,) = [line for line in found.splitlines() if "earlier answers keep the empty reasoning block" in line]
    assert line.startswith("known difference in several turns, ")


async def test_a_reasoning_mode_that_is_not_used_is_only_reported(
    check: Check, serve: Any, templates: dict[str, str]
) -> None:
    both = await check(serve(templates["qwen3"], contents_are_texts=True), "qwen3")
    assert both.splitlines()[0].endswith("; also with enable_thinking: true; also with enable_thinking: false")
    without_switch = templates["qwen3"].replace("enable_thinking is defined and not enable_thinking", "false")
    found = await check(serve(without_switch, contents_are_texts=True), "qwen3")
    assert found.splitlines()[0].endswith(
        "; but not with enable_thinking: false, which this configuration does not set"
    )


async def test_a_text_model_whose_template_writes_no_reasoning_is_no_problem(
    check: Check, serve: Any, templates: dict[str, str], model: Path
) -> None:
    server = serve(templates["qwen3-vl"])
    (model / "preprocessor_config.json").unlink()  # so that no family with images fits
    found = await check(server, "qwen3")
    assert (
        "known difference in reasoning before a tool's result: the server writes no reasoning, so this model must not "
        "sample any"
    ) in found.splitlines()


async def test_a_bridge_keeps_reasoning_that_the_template_leaves_out(
    check: Check, serve: Any, templates: dict[str, str]
) -> None:
    found = await check(serve(templates["qwen3"], contents_are_texts=True), "qwen3")
    (line,) = [
        line for line in found.splitlines() if line.endswith(": a bridge keeps the reasoning of earlier answers")
    ]
    assert line.startswith("known difference in a call and its result, ")


async def test_a_template_that_no_family_writes_gets_the_last_resort(
    check: Check, serve: Any, templates: dict[str, str]
) -> None:
    with pytest.raises(CheckFailed, match=r"(?s)server: .*«Today is Monday\.»") as failure:
        await check(
            serve(templates["qwen3-vl"].replace("'<|im_start|>user\\n'", "'<|im_start|>user\\nToday is Monday.'")),
            "qwen3-vl",
        )
    assert failure.value.fix is not None
    assert "start the server with --chat-template" in failure.value.fix


async def test_control_tokens_that_the_configuration_allows_are_no_difference(
    check: Check, serve: Any, templates: dict[str, str]
) -> None:
    found = await check(serve(templates["qwen3-vl"]), "qwen3-vl", "model.special_text=allow")
    assert "control tokens in a text" not in found


async def test_control_tokens_that_the_configuration_refuses_are_not_compared(
    check: Check, serve: Any, templates: dict[str, str]
) -> None:
    found = await check(serve(templates["qwen3-vl"]), "qwen3-vl", "model.special_text=refuse")
    assert "not compared: control tokens in a text (" in found


async def test_a_server_that_refuses_the_key_is_not_a_server_that_refuses_a_conversation(
    check: Check, serve: Any, templates: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(templates["qwen3-vl"])
    answer_render_route(server, (401, b"{}"), monkeypatch)
    with pytest.raises(EngineMisconfigured):
        await check(server, "qwen3-vl")


def with_role(template: str, name: str) -> str:
    """Return a template that writes another name for the assistant."""
    return template.replace("<|im_start|>assistant", f"<|im_start|>{name}")


@pytest.fixture
def text_model(model: Path, templates: dict[str, str]) -> Path:
    """The same model as a text model, with a chat template that no built-in renderer writes."""
    (model / "preprocessor_config.json").unlink()
    (model / "chat_template.jinja").write_text(with_role(templates["qwen3"], "helper"), "utf-8")
    return model


@pytest.mark.parametrize("family", ["qwen3", "another"])
async def test_the_checkpoint_s_own_template_is_no_problem(
    check: Check, serve: Any, templates: dict[str, str], model: Path, family: str
) -> None:
    template = templates["qwen3"] if family == "qwen3" else with_role(templates["qwen3"], "helper")
    (model / "chat_template.jinja").write_text(template, "utf-8")
    found = await check(serve(template, contents_are_texts=True), "template")
    assert re.match(r"the server renders 15 conversations as we do; [1-9]\d* of them also if the last turn", found)
    assert "not compared" not in found


async def test_the_template_of_a_file_is_not_sent_to_the_server_as_an_argument(
    check: Check, serve: Any, templates: dict[str, str], repository: Path
) -> None:
    server = serve("{{ raise_exception('file') if file is defined }}" + templates["qwen3"], contents_are_texts=True)
    found = await check(server, "template", f"model.template.file={repository / _TEMPLATES / 'qwen3.jinja'}")
    assert found.startswith("the server renders 15 conversations as we do")


async def test_another_template_on_the_server_gets_a_template_as_a_fix(
    check: Check, serve: Any, templates: dict[str, str], text_model: Path
) -> None:
    server = serve(with_role(templates["qwen3"], "model"), contents_are_texts=True)
    with pytest.raises(CheckFailed, match="15 of 15 conversations are rendered differently") as failure:
        await check(server, "template")
    origin = text_model / "chat_template.jinja"
    assert failure.value.fix == (
        f"the server uses another chat template than {origin}: set model.template.file to the file of the server's "
        f"template, or start the server with --chat-template {origin}"
    )


async def test_a_built_in_renderer_that_writes_the_server_s_template_is_the_fix(
    check: Check, serve: Any, templates: dict[str, str], text_model: Path
) -> None:
    server = serve(templates["qwen3"], contents_are_texts=True)
    with pytest.raises(CheckFailed) as failure:
        await check(server, "template", "model.tool_parser=qwen3", "model.reasoning_parser=think")
    assert failure.value.fix == (
        "set model.renderer to qwen3 and remove model.tool_parser and remove model.reasoning_parser"
    )


async def test_the_checkpoint_s_own_template_is_advised_if_no_built_in_renderer_fits(
    check: Check, serve: Any, text_model: Path
) -> None:
    server = serve((text_model / "chat_template.jinja").read_text("utf-8"), contents_are_texts=True)
    with pytest.raises(CheckFailed, match="15 of 15 conversations are rendered differently") as failure:
        await check(server, "qwen3")
    assert failure.value.fix == "set model.renderer to template"
    assert (await check(server, "template")).startswith("the server renders 15 conversations as we do")


async def test_a_built_in_renderer_is_preferred_to_the_checkpoint_s_own_template(
    check: Check, serve: Any, templates: dict[str, str], text_model: Path
) -> None:
    (text_model / "chat_template.jinja").write_text(templates["qwen3"], "utf-8")
    with pytest.raises(CheckFailed) as failure:
        await check(serve(templates["qwen3"], contents_are_texts=True), "prime-qwen3")
    assert failure.value.fix == "set model.renderer to qwen3"


async def test_a_template_that_writes_no_answers_is_compared_without_a_bridge(
    check: Check, serve: Any, model: Path
) -> None:
    template = "{% for message in messages if message.role == 'user' %}{{ message.content }}<|im_end|>{% endfor %}"
    (model / "chat_template.jinja").write_text(template, "utf-8")
    found = await check(serve(template, contents_are_texts=True), "template")
    assert found.startswith("the server renders 15 conversations as we do; 0 of them also if the last turn is bridged")
    assert "enable_thinking" not in found
