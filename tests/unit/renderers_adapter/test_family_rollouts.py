"""Every family plays whole rollouts with pictures, tools and questions, and the records are exact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.families import FAMILIES
from renderers_adapter.pool import RendererPool
from rollout.environments.tool_running import ToolRunner
from rollout.images import ImagePolicy, prepare_images
from rollout.records.messages import MessageError, ToolCall
from rollout.trainer import check, samples
from tests.programs.engine_double import ScriptedAnswer
from tests.programs.in_process import InProcessRollout
from tests.unit.renderers_adapter.conversations import BUILT_IN, SYSTEM

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Looks again.",
            "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
        },
    }
]


def picture(color: str, width: int) -> dict[str, Any]:
    return {"type": "image", "image": Image.new("RGB", (width, 600), color)}


def user(*parts: Any) -> dict[str, Any]:
    """Return a user message; a single text stays a string, because the renderer of prime-qwen3 refuses lists."""
    if len(parts) == 1 and isinstance(parts[0], str):
        return {"role": "user", "content": parts[0]}
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


class FamilyRollout(InProcessRollout):
    """A rollout of a family, with an engine that knows its pictures and gives scripted answers."""

    def __init__(self, adapter: RendererAdapter, directory: Path) -> None:
        self.adapter = adapter
        super().__init__(RendererPool(adapter), directory, self._pictures(directory))

    def _pictures(self, directory: Path) -> dict[str, tuple[str, int]]:
        if self.adapter.geometry is None:
            return {}
        shown = [user(picture("red", 800), picture("blue", 100))]
        found = [image.asset for image in prepare_images(shown, ImagePolicy("offload", directory)).images]
        layout = self.adapter.geometry.layout
        return {image.url: (image.mm_hash, layout(width=image.width, height=image.height).tokens) for image in found}

    async def say(self, messages: list[Any], tokens: list[int], tools: Any = None) -> Any:
        self.engine.scripted_answers = [ScriptedAnswer(tuple(tokens))]
        reply = await self.session.chat(messages, tools=tools)
        messages.append(reply.message)
        return reply

    def text(self, text: str) -> list[int]:
        return [*self.adapter.tokenizer.encode(text), self.adapter.stop_token_ids[0]]

    def call(self, asked: list[Any]) -> list[int]:
        """Return a tool call in the family's own format, without the opening."""
        call = {"id": "functions.look:0", "function": {"name": "look", "arguments": {"n": 1}}}
        assistant_message = {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]}
        opening: list[int] = self.adapter.render(asked, TOOLS).generation_prompt.tolist()
        history: list[int] = self.adapter.render([*asked, assistant_message], TOOLS).segments[-1].ids.tolist()
        if history[: len(opening)] == opening:
            return history[len(opening) :]
        # The opening begins reasoning, and the history has none.
        return [*self.adapter.tokenizer.encode("hm</think>"), *history[1:]]


@pytest.mark.parametrize("family", BUILT_IN)
async def test_a_family_plays_a_whole_rollout(
    adapter_for: Callable[[str], RendererAdapter], tmp_path: Path, family: str
) -> None:
    played = FamilyRollout(adapter_for(family), tmp_path / "images")
    await played.begin()
    sees, takes_tools = played.pool.geometry is not None, FAMILIES[family].supports_tools
    red, blue = ([picture("red", 800)], [picture("blue", 100)]) if sees else ([], [])

    messages: list[dict[str, Any]] = [SYSTEM, user(*red, "Colour?")]
    await played.say(messages, played.text("red"))
    messages.append(user(*blue, *red, "And these?"))
    await played.say(messages, played.text("blue and red"))
    await played.say([SYSTEM, user("So far: red."), *messages[2:], user(*blue, "Again?")], played.text("blue"))
    if takes_tools:
        asked: list[dict[str, Any]] = [SYSTEM, {"role": "user", "content": "Look twice."}]
        reply = await played.say(asked, played.call(asked), TOOLS)
        tool_result: Any = [*red, {"type": "text", "text": "red"}] if sees else "red"
        asked.append({"role": "tool", "tool_call_id": reply.tool_calls[0].id, "name": "look", "content": tool_result})
        await played.say(asked, played.call(asked[:2]), TOOLS)
        asked.append({"role": "tool", "tool_call_id": "functions.look:0", "name": "look", "content": "blue"})
        await played.say(asked, played.text("Seen."), TOOLS)
        sources = [step.prompt_source for step in played.steps[-2:]]
        assert sources == (["thinking"] if family == "deepseek-r1" else ["bridge"]) * 2
        assert [(call.name, call.arguments, call.error) for call in reply.tool_calls] == [("look", {"n": 1}, None)]
    if not sees:
        with pytest.raises(MessageError, match="accepts only text"):
            await played.session.chat([user(picture("red", 64))])

    trajectory = await played.finish()
    assert check(trajectory) == []
    sampled = sum(len(node.run.logprobs) for node in trajectory.nodes)
    assert sum(int(sample.mask.sum()) for sample in samples(trajectory)) == sampled
    image_counts = [len(turn.images) for turn in played.engine.turns.values()]
    assert image_counts == [count * sees for count in ([1, 3, 3, 0, 1, 1] if takes_tools else [1, 3, 3])]


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a good one"])
@pytest.mark.parametrize("family", [name for name in BUILT_IN if FAMILIES[name].supports_tools])
async def test_every_family_accepts_the_answer_to_a_call_that_cannot_be_read(
    adapter_for: Callable[[str], RendererAdapter], tmp_path: Path, family: str, beside: bool
) -> None:
    played = FamilyRollout(adapter_for(family), tmp_path / "images")
    await played.begin()
    asked: list[dict[str, Any]] = [SYSTEM, {"role": "user", "content": "Look."}]
    good = played.call(asked)
    reply = await played.say(asked, good if beside else [*good[:-4], good[-1]], TOOLS)
    broken = ToolCall("call-9", "", {}, "", "unclosed_block")
    calls = (*reply.tool_calls, broken) if beside else reply.tool_calls or (broken,)
    asked += [each.message for each in await ToolRunner({}, None, 60.0, 1000).answer(calls)]
    await played.say(asked, played.text("Seen."), TOOLS)
    known = {"deepseek-r1": "thinking", "deepseek-v4": "refused" if beside else "bridge"}
    assert played.steps[-1].prompt_source == known.get(family, "bridge")
    assert check(await played.finish()) == []
