"""Makes the prompts that a session would send for a conversation: rendered in full, and bridged turn by turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.pool import RendererPool
from renderers_adapter.tokenizer import FastTokenizer
from renderers_adapter.tokens import LogicalIds, TokenRun, as_logical_ids, concat_ids
from rollout.config.renderer_options import renderer_options
from rollout.config.sections import ModelConfig
from rollout.doctor.engines.conversations import Conversation
from rollout.records.kinds import MessageTokens, PromptSource
from rollout.records.messages import CanonicalMessage, digest_tools
from rollout.session.image_table import ImageTable
from rollout.session.prompt import Prompt, PromptBuilder
from rollout.session.trace import Trace

PromptTokens = list[list[int]]
"""The tokens of each message of a prompt, and as the last entry those of the generation prompt."""


@dataclass(frozen=True, slots=True)
class OwnPrompts:
    """The prompts of one conversation.

    Attributes:
        rendered: the prompt if the whole conversation is rendered at once.
        bridged: the prompt if the policy gave the earlier answers, with the tokens that the template writes. None if
            the last turn is not bridged.
    """

    rendered: PromptTokens
    bridged: PromptTokens | None


class OwnRenderer:
    """Our renderer of a model, with the settings of a configuration or with others.

    Attributes:
        model: the settings.
        tokenizer: the model's tokenizer.
        pad_id: the id of the image pad token; None for a text-only family.
    """

    def __init__(self, model: ModelConfig, tokenizer: FastTokenizer, *, expands_images: bool) -> None:
        """Create the renderer.

        Args:
            model: the settings.
            tokenizer: the model's tokenizer.
            expands_images: whether prompts have as many tokens for each image as the engine sees, or one.

        Raises:
            AdapterError: the renderer does not fit the tokenizer, the template arguments or the checkpoint.
        """
        self.model = model
        self.tokenizer = tokenizer
        self._expands_images = expands_images
        self._pool = RendererPool(
            RendererAdapter.open(model.path, model.renderer, renderer_options(model), tokenizer=tokenizer)
        )
        self.pad_id = self._pool.pad_id

    def with_settings(self, **settings: Any) -> Self:
        """Return the renderer with other settings. The errors are those of the constructor."""
        model = self.model.model_copy(update=settings)
        return type(self)(model, self.tokenizer, expands_images=self._expands_images)

    async def make_prompts(self, conversation: Conversation) -> OwnPrompts:
        """Return the prompts of a conversation.

        Raises:
            AdapterError, MessageError: the family does not support this conversation.
        """
        messages = conversation.canonical_messages
        rendered = await self.render(conversation)
        answered = [at for at, message in enumerate(messages) if message.role == "assistant"]
        player = _Player(self._pool, conversation)
        for at in answered:
            answer = rendered[at]
            if not answer or not await player.play_turn(messages[:at], messages[at], ending=answer[-1]):
                return OwnPrompts(rendered, None)
        prompt = await player.build_prompt(messages)
        return OwnPrompts(rendered, self._tokens(prompt) if prompt.source is PromptSource.BRIDGE else None)

    async def render(self, conversation: Conversation) -> PromptTokens:
        """Return the prompt of a conversation that is rendered at once. The errors are those of `make_prompts`."""
        return self._tokens(await _Player(self._pool, conversation).build_prompt(conversation.canonical_messages))

    def _tokens(self, prompt: Prompt) -> PromptTokens:
        path = prompt.full_path.expanded
        if not self._expands_images:
            return [run.ids.tolist() for run in path.runs]
        starts = path.run_starts
        return [path.ids[begin:end].tolist() for begin, end in pairwise(starts)]


class _Player:
    """Builds the prompts of one conversation, as a session does."""

    def __init__(self, renderers: RendererPool, conversation: Conversation) -> None:
        self._renderers = renderers
        self._tools = conversation.tools
        self._tools_digest = digest_tools(conversation.tools)
        self._trace = Trace()
        image_table = ImageTable(renderers.geometry)
        image_table.add(conversation.images, first_index=0)
        self._builder = PromptBuilder(renderers, self._trace, image_table)

    async def build_prompt(self, messages: Sequence[CanonicalMessage]) -> Prompt:
        """Return the prompt for the next answer."""
        return await self._builder.build_prompt(messages, self._tools_digest, self._tools)

    async def play_turn(self, messages: Sequence[CanonicalMessage], answer: CanonicalMessage, *, ending: int) -> bool:
        """Add a turn whose answer has the tokens that the template writes.

        Return False if the answer does not begin with the generation prompt, so that no policy could sample it. In some
        formats, an answer ends with the token that begins the next message; `ending` is the last token of the answer
        within its conversation.
        """
        prompt = await self.build_prompt(messages)
        conversation = [message.message for message in (*messages, answer)]
        written = (await self._renderers.render(conversation, self._tools)).segments[-1].ids
        opening = prompt.generation_prompt
        if not np.array_equal(written[: len(opening)], opening) or len(written) == len(opening):
            return False
        completion = LogicalIds(written[len(opening) :])
        stop_tokens = self._renderers.stop_token_ids
        if completion[-1] not in stop_tokens and ending in stop_tokens:
            completion = concat_ids(completion, as_logical_ids([ending]))
        run = TokenRun(concat_ids(opening, completion), len(opening), np.zeros(len(completion), np.float32))
        self._trace.commit(
            prompt.known_path.last_node,
            prompt.new_messages,
            (answer.digest, MessageTokens(answer.message, run, ())),
            self._tools_digest,
        )
        return True
