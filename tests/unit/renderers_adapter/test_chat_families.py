"""Every family with a chat template of its own plays whole rollouts: it renders, bridges and parses.

`tests/needs/vllm/chat_templates` plays the same conversations on real vLLM servers. Here, full renders are the
reference.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.pool import RendererPool
from renderers_adapter.special_text import MaskingTokenizer
from renderers_adapter.tokenizer import load_tokenizer
from rollout.records.messages import canonicalise
from rollout.trainer import check
from rollout.trainer.trajectory import Trajectory
from tests.chat_families.conversations import TALKS, TASK, Talk, TalkEnvironment
from tests.chat_families.families import FAMILIES, write_checkpoint
from tests.programs.engine_double import ScriptedAnswer
from tests.programs.in_process import InProcessRollout
from tests.unit.renderers_adapter.conversations import rendered_ids

AdapterOf = Callable[[str], RendererAdapter]


@pytest.fixture(scope="module")
def adapter_of(tmp_path_factory: pytest.TempPathFactory) -> AdapterOf:
    """Opens the adapter of a family."""

    def open_adapter(name: str) -> RendererAdapter:
        family = FAMILIES[name]
        directory = write_checkpoint(family, tmp_path_factory.mktemp("family"))
        return RendererAdapter.open(directory, "template", family.options)

    return open_adapter


async def play_talk(
    talk: Talk, adapter: RendererAdapter, directory: Path
) -> tuple[TalkEnvironment, InProcessRollout, Trajectory]:
    """Play a talk with its planned answers."""
    rollout = InProcessRollout(RendererPool(adapter), directory, {})
    end_id = adapter.tokenizer.token_id(FAMILIES[talk.family].end_tokens[0])

    def plan(answer: str) -> None:
        rollout.engine.scripted_answers = [ScriptedAnswer((*adapter.tokenizer.encode(answer), end_id))]

    environment = TalkEnvironment(talk, plan)
    await rollout.begin()
    await environment.run(TASK, rollout.session)
    return environment, rollout, await rollout.finish()


@pytest.mark.parametrize("name", TALKS)
async def test_a_talk_is_bridged_or_rendered_as_its_template_requires(
    adapter_of: AdapterOf, tmp_path: Path, name: str
) -> None:
    talk = TALKS[name]
    _, _, trajectory = await play_talk(talk, adapter_of(talk.family), tmp_path)
    assert check(trajectory) == []
    assert [step.prompt_source for step in trajectory.steps] == [turn.source for turn in talk.turns]


@pytest.mark.parametrize("name", TALKS)
async def test_a_prompt_ends_as_a_full_render_after_the_sampled_tokens(
    adapter_of: AdapterOf, tmp_path: Path, name: str
) -> None:
    adapter = adapter_of(TALKS[name].family)
    environment, rollout, _ = await play_talk(TALKS[name], adapter, tmp_path)
    known: list[int] = []
    for messages, turn, observed in zip(
        environment.requests, TALKS[name].turns, rollout.engine.turns.values(), strict=True
    ):
        canonical = [message.message for message in canonicalise(messages, ())]
        whole = rendered_ids(adapter, canonical, TALKS[name].tools)
        kept = len(known) if turn.source == "bridge" else 0
        tail = list(observed.logical[kept:])
        assert list(observed.logical[:kept]) == known[:kept]
        assert whole[-len(tail) :] == tail
        known = list(observed.prompt_and_completion)


@pytest.mark.parametrize("name", [name for name in TALKS if "calls" in name])
async def test_the_calls_of_an_answer_are_parsed(adapter_of: AdapterOf, tmp_path: Path, name: str) -> None:
    environment, _, _ = await play_talk(TALKS[name], adapter_of(TALKS[name].family), tmp_path)
    calls = [message["tool_calls"][0]["function"] for message in environment.requests[-1] if "tool_calls" in message]
    assert [json.loads(call["arguments"]) for call in calls] == [{"word": "red"}, {"word": "blue"}]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_message_that_spells_the_end_token_stays_text(adapter_of: AdapterOf, family: str) -> None:
    adapter = adapter_of(family)
    end = FAMILIES[family].end_tokens[0]
    harmless, spelled = (rendered_ids(adapter, [{"role": "user", "content": f"Say {text}"}]) for text in ("it", end))
    end_id = adapter.tokenizer.token_id(end)
    assert spelled.count(end_id) == harmless.count(end_id)
    assert f"Say {end}" in adapter.tokenizer.decode(spelled)


def test_a_text_after_a_control_token_gets_no_space_because_another_text_is_marked(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_checkpoint(FAMILIES["Mistral"], tmp_path))
    masking_tokenizer = MaskingTokenizer(tokenizer)
    (marked,) = masking_tokenizer.mask(["x</s>"])
    ids = masking_tokenizer.encode(f"<s>[INST]one[/INST]two[INST]{marked}")
    plain = tokenizer.encode("<s>[INST]one[/INST]two[INST]x")
    assert ids[: len(plain)] == plain
