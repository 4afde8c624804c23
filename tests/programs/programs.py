"""A state machine that does with conversations what an environment may do; the reference model checks every turn."""

import asyncio
import copy
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from renderers import config_from_name, create_renderer

from renderers_adapter.creation import load_processor_config
from renderers_adapter.geometry import geometry_for
from renderers_adapter.pool import RendererPool, shared_pool
from renderers_adapter.special_text import MaskingTokenizer
from rollout.engine.errors import EngineAborted
from rollout.environments.color_codeword import ColorCodewordSettings, draw_square
from rollout.images import ImagePolicy, prepare_images
from rollout.records.kinds import Step
from tests.programs.engine_double import ScriptedAnswer
from tests.programs.in_process import InProcessRollout
from tests.programs.reference import Message, ReferenceModel, Tools

_T = TypeVar("_T")

LOOK: Tools = [{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {}}}]
CALL = '<tool_call>\n{"name": "look", "arguments": {"n": 1}}\n</tool_call>'
ANSWERS = (
    *("red", "I see.", " green", "", "naïve ☃\n", "blue <|im_start|> square", CALL, f"Both.\n{CALL}\n{CALL}"),
    *('<tool_call>\n{"name": "look", "argu', "<tool_call>\n{broken}\n</tool_call>"),
    *("hm\n</think>\n\nred", f"hm\n</think>\n\n{CALL}", "<think>\nhm\n</think>\n\nred"),
)
RENDERERS = ("qwen3-vl", "qwen3.5")
MODES: tuple[Literal["offload", "inline"], ...] = ("offload", "inline")
MARKUP = ("<tool_call>", "</tool_call>", "<think>", "</think>", "<|im_start|>")
TEXTS = ("What is this?", "And now?", "", "  spaces\n", "Look again.", "<|im_end|>\n<|image_pad|>")


@dataclass(frozen=True, slots=True)
class ProgramResources:
    """What all programs share: renderers, and images by their URLs."""

    directory: Path
    pools: Mapping[str, RendererPool]
    uris: Sequence[str]
    images: Mapping[str, tuple[str, int]]


def make_resources(directory: Path, model: Path) -> ProgramResources:
    """Make squares of several sizes, each with its `data:` URI and the URL of its offloaded file."""
    geometry = geometry_for("qwen_vl", load_processor_config(model))
    images: dict[str, tuple[str, int]] = {}
    uris = []
    for color, size in (("red", 64), ("green", 400), ("blue", 600), ("red", 600)):
        look = ColorCodewordSettings(image_size=size, image_format="jpeg")
        uris.append(draw_square(color, look, seed=f"{color}{size}"))
        for mode in MODES:
            message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": uris[-1]}}]}
            (prepared,) = prepare_images([message], ImagePolicy(mode, directory)).images
            asset = prepared.asset
            images[asset.url] = asset.mm_hash, geometry.layout(width=asset.width, height=asset.height).tokens
    return ProgramResources(directory, {name: shared_pool(model, name) for name in RENDERERS}, uris, images)


@cache
def _encode_answer(pool: RendererPool, text: str, *, letters: bool) -> tuple[int, ...]:
    encode, decode = pool.tokenizer.encode, pool.tokenizer.decode
    tokens = encode(text)
    if not letters:
        return tuple(tokens)
    markup = set(encode("".join(MARKUP)))
    whole = [token in markup or "\ufffd" in decode([token]) for token in tokens]
    spelled = [
        [token] if keep else encode_letters(encode, decode([token])) for token, keep in zip(tokens, whole, strict=True)
    ]
    return tuple(piece for pieces in spelled for piece in pieces)


def encode_letters(encode: Callable[[str], list[int]], text: str) -> list[int]:
    return [token for letter in text for token in encode(letter)]


@dataclass(slots=True)
class Conversation:
    """The messages and the tools of one conversation of the environment."""

    messages: list[Message]
    tools: Tools

    @property
    def answerable(self) -> bool:
        return bool(self.messages) and self.messages[-1]["role"] != "assistant"


numbers = st.integers(0, 2**16)
answers = st.builds(
    lambda text, letters, end, pace: (text, letters, end, pace),
    st.sampled_from(ANSWERS),
    st.booleans(),
    st.sampled_from(("close", "close", "close", "end of text", "cut", "stop string", "abort")),
    st.integers(0, 3),
)
parts = st.lists(st.one_of(st.sampled_from(TEXTS), st.integers(0, 3)), min_size=1, max_size=3)


class Programs(RuleBasedStateMachine):
    """One rollout whose environment acts at random."""

    resources: ClassVar[ProgramResources]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.conversations: list[Conversation] = []

    @initialize(
        renderer=st.sampled_from(RENDERERS),
        mode=st.sampled_from(MODES),
        system=st.booleans(),
        said=parts,
        answer=answers,
    )
    def begin(self, renderer: str, mode: Any, system: bool, said: list[Any], answer: Any) -> None:
        self.pool = self.resources.pools[renderer]
        self.played = InProcessRollout(self.pool, self.resources.directory, self.resources.images, mode)
        self.engine, self.session = self.played.engine, self.played.session
        hashes = {url: mm_hash for url, (mm_hash, _) in self.resources.images.items()}
        tokenizer = MaskingTokenizer(self.pool.tokenizer)
        own_renderer = create_renderer(tokenizer, config_from_name(renderer))
        self.reference = ReferenceModel(own_renderer, tokenizer, hashes, other_ends=self.pool.stop_token_ids[1:])
        self.run(self.played.begin())
        self.system = [{"role": "system", "content": "Be brief."}] if system else []
        self.new(said, False, answer)

    @rule(said=parts, tools=st.booleans(), answer=answers)
    def new(self, said: list[Any], tools: bool, answer: Any) -> None:
        """Start another conversation, as a sub-agent does."""
        self.conversations.append(Conversation([*self.system, self.user(said)], LOOK if tools else None))
        self.chat(self.conversations[-1], answer)

    @rule(which=numbers, said=parts, answer=answers)
    def ask(self, which: int, said: list[Any], answer: Any) -> None:
        conversation = self.pick(which)
        conversation.messages.append(self.user(said))
        self.chat(conversation, answer)

    @rule(which=numbers, results=st.lists(parts, min_size=1, max_size=3), answer=answers)
    def tool_round(self, which: int, results: list[list[Any]], answer: Any) -> None:
        conversation = self.pick(which)
        conversation.messages += [self.message("tool", said) for said in results]
        self.chat(conversation, answer)

    @rule(which=numbers, cut=numbers, same=st.booleans(), said=parts, answer=answers)
    def fork(self, which: int, cut: int, same: bool, said: list[Any], answer: Any) -> None:
        """Go back to an earlier message and continue differently, with the same objects or with copies."""
        origin = self.pick(which)
        messages = origin.messages[: 1 + cut % len(origin.messages)]
        self.conversations.append(Conversation(messages if same else copy.deepcopy(messages), origin.tools))
        self.conversations[-1].messages.append(self.user(said))
        self.chat(self.conversations[-1], answer)

    @rule(which=numbers, keep=st.integers(0, 3), said=parts, answer=answers)
    def compact(self, which: int, keep: int, said: list[Any], answer: Any) -> None:
        """Replace the beginning with a summary, and keep some messages of the end."""
        origin = self.pick(which)
        summary = {"role": "user", "content": "So far: squares."}
        kept = [said for said in origin.messages if said["role"] != "system"][-keep:] if keep else []
        self.conversations.append(Conversation([*self.system, summary, *kept, self.user(said)], origin.tools))
        self.chat(self.conversations[-1], answer)

    @rule(which=numbers, said=parts, answer=answers)
    def retool(self, which: int, said: list[Any], answer: Any) -> None:
        """Continue the same conversation with other tools, which is another tree."""
        origin = self.pick(which)
        self.conversations.append(Conversation([*origin.messages, self.user(said)], None if origin.tools else LOOK))
        self.chat(self.conversations[-1], answer)

    @rule(which=numbers, at=numbers, answer=answers)
    def edit(self, which: int, at: int, answer: Any) -> None:
        """Change an answer in place, as if the policy had said something else."""
        conversation = self.pick(which)
        assistant_messages = [message for message in conversation.messages if message["role"] == "assistant"]
        if assistant_messages:
            assistant_messages[at % len(assistant_messages)]["content"] = "purple"
        conversation.messages.append(self.user(["And now?"]))
        self.chat(conversation, answer)

    @rule(which=numbers, answer=answers)
    def retry(self, which: int, answer: Any) -> None:
        """Ask for the last answer again, and continue with the new one."""
        conversation = self.pick(which)
        while not conversation.answerable and len(conversation.messages) > 1:
            conversation.messages.pop()
        if conversation.answerable:
            self.chat(conversation, answer)

    @rule(which=numbers, several=st.lists(st.tuples(parts, answers, st.booleans()), min_size=2, max_size=3))
    def parallel(self, which: int, several: list[tuple[list[Any], Any, bool]]) -> None:
        """Ask for several answers at the same time from the same message, as sub-agents do."""
        origin = self.pick(which)
        forks = []
        for said, _, same in several:
            messages = list(origin.messages) if same else copy.deepcopy(origin.messages)
            messages.append(self.user(several[0][0] if same else said))
            forks.append(Conversation(messages, origin.tools))
        self.conversations += forks
        self.chat_concurrently(forks, [answer for _, answer, _ in several])

    @rule(which=numbers, said=parts, answer=answers, patience=st.integers(0, 6))
    def give_up(self, which: int, said: list[Any], answer: Any, patience: int) -> None:
        """Stop waiting for an answer, which may have arrived already."""
        conversation = self.pick(which)
        messages = [*conversation.messages, self.user(said)]
        self.engine.scripted_answers = [self.script_answer(answer)]

        async def cancelled() -> None:
            turn = asyncio.ensure_future(self.session.chat(messages, tools=conversation.tools))
            for _ in range(patience):
                await asyncio.sleep(0)
            turn.cancel()
            outcome = (await asyncio.gather(turn, return_exceptions=True))[0]
            if isinstance(outcome, Exception) and not isinstance(outcome, EngineAborted):
                raise outcome

        started_before = len(self.engine.started_turns)
        self.run(cancelled())
        self.engine.scripted_answers = []
        for number in self.engine.started_turns[started_before:]:
            if number in self.engine.turns:
                self.check_turn(number, messages, conversation.tools)
                self.remember(number, messages, conversation.tools)

    def teardown(self) -> None:
        try:
            if self.conversations:
                self.reference.check_records(self.run(self.played.finish()), self.engine.turns)
        finally:
            self.loop.close()

    def chat(self, conversation: Conversation, answer: Any) -> None:
        self.chat_concurrently([conversation], [answer])

    def chat_concurrently(self, conversations: list[Conversation], answers: list[Any]) -> None:
        """Play turns at the same time; check each against what was answered before all of them."""
        self.engine.scripted_answers = [self.script_answer(answer) for answer in answers]
        started_before = len(self.engine.started_turns)

        async def turns() -> Sequence[Any]:
            chats = [self.session.chat(held.messages, tools=held.tools) for held in conversations]
            replies: Sequence[Any] = await asyncio.gather(*chats, return_exceptions=True)
            return replies

        replies = self.run(turns())
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, EngineAborted):
                raise reply
        answered = [
            (number, held, reply)
            for number, held, reply in zip(
                sorted(self.engine.started_turns[started_before:]), conversations, replies, strict=True
            )
            if not isinstance(reply, BaseException)
        ]
        for number, held, _ in answered:
            self.check_turn(number, held.messages, held.tools)
        for number, held, reply in answered:
            self.remember(number, held.messages, held.tools)
            held.messages.append(reply.message)

    def check_turn(self, number: int, messages: Sequence[Message], tools: Tools) -> None:
        source = self.step(number).prompt_source
        self.reference.check_turn(messages, tools, self.engine.turns[number], source)

    def remember(self, number: int, messages: Sequence[Message], tools: Tools) -> None:
        reply = self.step(number).nodes[-1].message
        self.reference.remember(messages, tools, reply, self.engine.turns[number])

    def step(self, number: int) -> Step:
        return next(step for step in self.played.steps if step.turn == number)

    def pick(self, which: int) -> Conversation:
        return self.conversations[which % len(self.conversations)]

    def user(self, content_parts: list[Any]) -> Message:
        return self.message("user", content_parts)

    def message(self, role: str, content_parts: list[Any]) -> Message:
        """Return a message with these texts and images; a single text becomes plain content."""
        if len(content_parts) == 1 and isinstance(content_parts[0], str):
            return {"role": role, "content": content_parts[0]}
        content: list[dict[str, Any]] = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": self.resources.uris[part]}}
            for part in content_parts
        ]
        return {"role": role, "content": content}

    def script_answer(self, answer: tuple[str, bool, str, int]) -> ScriptedAnswer:
        """Return an answer with the usual tokens, or with one token for each letter, which decode to the same text."""
        text, letters, end, pace = answer
        tokens = _encode_answer(self.pool, text, letters=letters)
        close, end_of_text = self.pool.stop_token_ids
        match end:
            case "close":
                return ScriptedAnswer((*tokens, close), delay_steps=pace)
            case "end of text":
                return ScriptedAnswer((*tokens, end_of_text), delay_steps=pace)
            case "stop string":
                return ScriptedAnswer(tuple(tokens or [close]), stop_reason="square", delay_steps=pace)
            case "cut":
                return ScriptedAnswer(tuple(tokens or [close]), "length", delay_steps=pace)
            case _:
                return ScriptedAnswer(tuple(tokens), "abort", delay_steps=pace)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.loop.run_until_complete(work)
