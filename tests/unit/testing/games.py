"""A game that a run records, and versions of it with one change each."""

import asyncio
import io
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from PIL import Image

from rollout.environments.base import ContextExhausted, Environment, EnvironmentSettings, Model, Reply, Score
from rollout.environments.multi_turn import MultiTurnEnvironment, Turn
from rollout.records.messages import Message
from rollout.records.task import Task


def picture(color: str) -> Message:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(data, "PNG")
    parts = [{"type": "image", "image": data.getvalue()}, {"type": "text", "text": "Which colour?"}]
    return {"role": "user", "content": parts}


def schema(name: str) -> Mapping[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}


class GameSettings(EnvironmentSettings):
    turns: int = 3


class Game(MultiTurnEnvironment):
    """Repeats each answer, with the number of its tool calls, and scores the length of all of them."""

    Settings: ClassVar[type[EnvironmentSettings]] = GameSettings
    settings: GameSettings
    tools: ClassVar[Sequence[Mapping[str, Any]] | None] = (schema("look"),)

    async def reset(self, task: Task) -> Sequence[Message]:
        self.texts: list[str] = []
        return [{"role": "system", "content": "Play."}, {"role": "user", "content": task.data["question"]}]

    async def step(self, reply: Reply) -> Turn:
        self.texts.append(reply.text)
        if len(self.texts) < self.settings.turns:
            return Turn([{"role": "user", "content": self.hint(reply)}], reward=1.0)
        return Turn(score=self.score())

    def hint(self, reply: Reply) -> str:
        return f"Turn {reply.turn}: {reply.text!r} with the calls {[call.error for call in reply.tool_calls]}."

    def score(self) -> Score:
        letters = float(len("".join(self.texts)))
        return Score(rewards={"letters": letters}, weights={"letters": 0.5}, metrics={"turns": len(self.texts)})


class OtherHint(Game):
    def hint(self, reply: Reply) -> str:
        return super().hint(reply) if reply.turn == 0 else "Line one.\nLine two."


class OtherScore(Game):
    def score(self) -> Score:
        return Score(rewards={"letters": 1.0}, metrics={"turns": len(self.texts), "new": 1}, limit="turns")


class OtherTools(Game):
    tools: ClassVar[Sequence[Mapping[str, Any]] | None] = (schema("search"),)


class OtherForm(Game):
    """Says the same in a list of parts."""

    async def reset(self, task: Task) -> Sequence[Message]:
        system, question = await super().reset(task)
        return [system, {**question, "content": [{"type": "text", "text": question["content"]}]}]


class MessageMore(Game):
    async def reset(self, task: Task) -> Sequence[Message]:
        return [*await super().reset(task), {"role": "user", "content": "Be quick."}]


class EndsEarly(Game):
    def hint(self, reply: Reply) -> str:
        self.settings = GameSettings(turns=2)
        return super().hint(reply)


class GoesOn(Game):
    def score(self) -> Score:
        raise AssertionError("never reached")

    async def step(self, reply: Reply) -> Turn:
        self.texts.append(reply.text)
        return Turn([{"role": "user", "content": self.hint(reply)}], reward=1.0)


class Raises(Game):
    def hint(self, reply: Reply) -> str:
        if reply.turn == 1:
            raise ValueError(f"no hint for {reply.text}")
        return super().hint(reply)


class RaisesOtherwise(Game):
    def hint(self, reply: Reply) -> str:
        if reply.turn == 1:
            raise KeyError(reply.text)
        return super().hint(reply)


class CancelsItself(Game):
    def hint(self, reply: Reply) -> str:
        raise asyncio.CancelledError


class Exits(Game):
    def hint(self, reply: Reply) -> str:
        raise SystemExit(3)


class HoldsOn(Game):
    async def step(self, reply: Reply) -> Turn:
        await asyncio.Event().wait()
        raise AssertionError("never reached")


class Scores(GoesOn):
    """Gives a score when the context is full."""

    async def truncated(self, conversation: list[Message]) -> Score | None:
        return Score(0.5)


class Shows(Environment):
    colors: ClassVar[Sequence[str]] = ("red", "blue")

    async def run(self, task: Task, model: Model) -> Score:
        conversation: list[Message] = []
        for color in self.colors:
            conversation.append(picture(color))
            conversation.append((await model.chat(conversation)).message)
        return Score(1.0)


class ShowsOthers(Shows):
    colors: ClassVar[Sequence[str]] = ("red", "green")


class Branches(Environment):
    """Asks three questions at the same time."""

    questions: ClassVar[Sequence[str]] = ("a", "b", "c")

    async def run(self, task: Task, model: Model) -> Score:
        async def ask(question: str) -> str:
            return (await model.chat([{"role": "user", "content": question}])).text

        answers = await asyncio.gather(*(ask(question) for question in self.questions))
        return Score(float(sorted(answers) == ["A", "B", "C"]))


class BranchesTurned(Branches):
    questions: ClassVar[Sequence[str]] = ("c", "a", "b")


class BranchesOthers(Branches):
    questions: ClassVar[Sequence[str]] = ("c", "x", "b")


class Shortens(Environment):
    """Begins again with a shorter message when the context is full."""

    async def run(self, task: Task, model: Model) -> Score:
        try:
            await model.chat([{"role": "user", "content": "word " * 300}])
        except ContextExhausted:
            await model.chat([{"role": "user", "content": "word"}])
        return Score(1.0)


class Closes(Game):
    """Records the uses of its shared resources and its `close`."""

    events: ClassVar[list[str]] = []

    @classmethod
    @asynccontextmanager
    async def shared(cls, settings: Any) -> AsyncIterator[list[str]]:
        cls.events[:] = ["shared"]
        yield cls.events
        cls.events.append("left")

    async def close(self) -> None:
        self.shared_resources.append("closed")


class ClosesWithOtherHint(Closes, OtherHint):
    """Says something else, so that its replay ends in the middle."""
