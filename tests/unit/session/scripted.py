"""A rollout of one session whose answers a test gives as text, and messages to send."""

from typing import Any

from renderers_adapter.pool import RendererPool
from tests.programs.engine_double import ScriptedAnswer
from tests.programs.in_process import InProcessRollout
from tests.programs.programs import ProgramResources

Message = dict[str, Any]


def user(*said: Any) -> Message:
    return {"role": "user", "content": parts(said)}


def tool(*said: Any) -> Message:
    return {"role": "tool", "content": parts(said)}


def parts(said: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in said]


class ScriptedRollout:
    """A rollout whose answers a test gives as text."""

    def __init__(self, resources: ProgramResources, pool: RendererPool) -> None:
        self.in_process = InProcessRollout(pool, resources.directory, resources.images)
        self.pool = pool

    async def answer(
        self, messages: list[Message], text: str, *, finish: str = "stop", closed: bool = True, tools: Any = None
    ) -> Any:
        tokens = [*self.pool.tokenizer.encode(text), *([self.pool.stop_token_ids[0]] if closed else [])]
        self.in_process.engine.scripted_answers = [ScriptedAnswer(tuple(tokens), finish)]
        reply = await self.in_process.session.chat(messages, tools=tools)
        messages.append(reply.message)
        return reply

    @property
    def sources(self) -> list[str]:
        return [step.prompt_source for step in self.in_process.steps]

    def follows(self, later: int, earlier: int) -> bool:
        """Whether the prompt of a turn begins with the prompt and the completion of an earlier turn."""
        whole = self.in_process.engine.turns[earlier].prompt_and_completion
        return self.in_process.engine.turns[later].logical[: len(whole)] == whole
