"""A program whose connections break at random: it hangs up, is killed, sends twice, waits, and asks again.

It knows what it has received, so it says in the end which turns there must be, and which of them train.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from rollout.environments.endpoint import Endpoint
from tests.unit.gateway.raw_client import DIALECTS, DialectName, RawClient, Response, body_of, text_of

_MAX_DELAY = 0.03
_CONVERSATIONS = 8
_MAX_HISTORY = 12


@dataclass
class Accounts:
    """What the program knows of its answers, by their texts, which are all different.

    Attributes:
        requests: the number of requests that were sent.
        fates: how often each thing happened to a request.
        turns: the number of turns that there must be for a question.
        possible: the greatest number of turns that there may be for a question, if it gave up.
        received: the answers that it has received.
        reset: those of them whose connection it reset afterwards.
        replaced: those of them for whose request it asked again.
        echoed: those of them that it repeated.
        mistakes: what was wrong with a response.
        histories: what happened to the requests of each question, in order.
    """

    requests: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)
    possible: Counter[str] = field(default_factory=Counter)
    received: set[str] = field(default_factory=set)
    reset: set[str] = field(default_factory=set)
    replaced: set[str] = field(default_factory=set)
    echoed: set[str] = field(default_factory=set)
    mistakes: list[str] = field(default_factory=list)
    histories: dict[str, list[str]] = field(default_factory=dict)

    @property
    def trained(self) -> set[str]:
        """The answers that must train."""
        return self.echoed | (self.received - self.reset - self.replaced)


@dataclass
class _Question:
    """A request of a conversation, until it has an answer.

    Attributes:
        name: the text of the question, which no other request has.
        body: the body.
        choices: the number of choices.
    """

    name: str
    body: bytes
    choices: int


class Conversation:
    """One conversation of the program, in one dialect."""

    def __init__(self, endpoint: Endpoint, accounts: Accounts, chance: random.Random, name: str) -> None:
        self._endpoint = endpoint
        self._accounts = accounts
        self._chance = chance
        self._name = name
        self._dialect: DialectName = chance.choice(DIALECTS)
        self._kept = RawClient.of(endpoint)
        self._history: list[Any] = []
        self._choices: dict[str, list[str]] = {}
        """For each answer, the texts of all choices that came with it."""

    async def play(self, may_go_on: Callable[[], bool]) -> None:
        """Ask questions while `may_go_on` is true."""
        number = 0
        gave_up = False
        # Only an answer shows that the gateway has seen the echoes of a request, so the last question has one.
        while may_go_on() or gave_up:
            question = self._new_question(f"Question {number} of {self._name}.")
            texts = await self._answered(question)
            gave_up = not texts
            if texts:
                self._history += [
                    {"role": "user", "content": question.name},
                    {"role": "assistant", "content": self._chance.choice(texts)},
                ]
                if len(self._history) > _MAX_HISTORY:
                    self._history.clear()
            number += 1

    def _new_question(self, name: str) -> _Question:
        choices = 2 if self._dialect == "chat" and self._chance.random() < 0.1 else 1
        more = {"n": 2} if choices == 2 else {}
        stream = self._chance.random() < 0.5
        body = body_of(name, self._dialect, history=self._history, stream=stream, **more)
        return _Question(name, body, choices)

    async def _answered(self, question: _Question) -> list[str]:
        """Ask until there is an answer, and return its texts; empty if the program gave up."""
        fates: dict[str, tuple[float, Callable[[_Question], Awaitable[list[str]]]]] = {
            "asked": (3, self._ask),
            "in pieces": (1, self._ask_in_pieces),
            "twice at once": (1, self._ask_twice),
            "killed": (2, self._be_killed),
            "hung up": (2, self._hang_up),
            "cut": (1, self._be_cut),
            "torn": (1, self._tear_request),
        }
        names = list(fates)
        for _ in range(20):
            (fate,) = self._chance.choices(names, [fates[name][0] for name in names])
            if fate == "twice at once" and question.name in self._accounts.histories:
                # The answer may be there already. Then the first connection has it before the second one asks.
                fate = "asked"
            self._count(fate)
            self._accounts.histories.setdefault(question.name, []).append(fate)
            texts = await fates[fate][1](question)
            if texts:
                return await self._maybe_ask_again(question, texts)
            if self._chance.random() < 0.05:
                self._count("gave up")
                self._accounts.possible[question.name] += question.choices
                return []
            await self._wait()
        return self._note(question, await self._kept.ask(question.body, self._dialect))

    async def _maybe_ask_again(self, question: _Question, texts: list[str]) -> list[str]:
        """Sometimes ask again although there is an answer, and go on with either."""
        if self._chance.random() > 0.15:
            return texts
        self._count("asked again")
        self._accounts.histories[question.name].append("asked again")
        self._accounts.replaced.update(texts)
        again = self._note(question, await self._kept.ask(question.body, self._dialect))
        if set(again) & set(texts):
            self._accounts.mistakes.append(f"{question.name} got a turn again that it had received")
        return self._chance.choice([texts, again])

    async def _ask(self, question: _Question) -> list[str]:
        return self._note(question, await self._kept.ask(question.body, self._dialect))

    async def _ask_in_pieces(self, question: _Question) -> list[str]:
        data = self._kept.encode(question.body, self._dialect)
        middle = self._chance.randrange(1, len(data))
        await self._kept.send_bytes(data[:middle])
        await self._wait()
        await self._kept.send_bytes(data[middle:])
        return self._note(question, await self._kept.read())

    async def _ask_twice(self, question: _Question) -> list[str]:
        """Send the request over two connections, before one of them has the answer."""
        second = RawClient.of(self._endpoint)
        await second.send_bytes(second.encode(question.body, self._dialect), reads=False)
        await self._kept.send(question.body, self._dialect)
        first = await self._kept.read()
        second.kill()
        return self._note(question, first)

    async def _be_killed(self, question: _Question) -> list[str]:
        client = RawClient.of(self._endpoint)
        await client.send_bytes(client.encode(question.body, self._dialect), reads=False)
        await self._wait()
        client.kill()
        return []

    async def _hang_up(self, question: _Question) -> list[str]:
        """Close the connection, with the answer unread if it has come."""
        client = RawClient.of(self._endpoint)
        await client.send_bytes(client.encode(question.body, self._dialect), reads=False)
        await self._wait()
        client.close()
        return []

    async def _be_cut(self, question: _Question) -> list[str]:
        """Lose the connection while the answer comes."""
        client = RawClient.of(self._endpoint)
        await client.send(question.body, self._dialect)
        await client.read_head()
        client.kill()
        return []

    async def _tear_request(self, question: _Question) -> list[str]:
        client = RawClient.of(self._endpoint)
        data = client.encode(question.body, self._dialect)
        await client.send_bytes(data[: self._chance.randrange(1, len(data))])
        await self._wait()
        client.close()
        return []

    def _note(self, question: _Question, response: Response) -> list[str]:
        """Note an answer that was received, and return its texts."""
        if response.status != 200:
            self._accounts.mistakes.append(f"{question.name}: {response.status} {response.body[:300]!r}")
            return []
        texts = _texts_of(response, self._dialect, question.choices)
        if len(texts) != question.choices or not all(texts):
            self._accounts.mistakes.append(f"{question.name}: {response.body[:300]!r}")
        if not set(texts) <= self._accounts.received:
            self._accounts.turns[question.name] += question.choices
        self._accounts.received.update(texts)
        self._accounts.echoed.update(self._texts_before(question))
        self._choices.update(dict.fromkeys(texts, texts))
        return texts

    def _texts_before(self, question: _Question) -> list[str]:
        """Return the answers that a request repeats, with the other choices of the same answers."""
        request = json.loads(question.body)
        messages = request.get("messages") or request["input"]
        chosen = [message["content"] for message in messages if message["role"] == "assistant"]
        return [text for one in chosen for text in self._choices[one]]

    def _count(self, fate: str) -> None:
        self._accounts.fates[fate] += 1
        self._accounts.requests += 1

    async def _wait(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.0, _MAX_DELAY))


def _texts_of(response: Response, dialect: DialectName, choices: int) -> list[str]:
    if choices == 1:
        return [text_of(response, dialect)]
    if not response.is_stream:
        return [choice["message"]["content"] for choice in response.data["choices"]]
    texts = [""] * choices
    for event in response.events:
        for choice in () if event == "[DONE]" else event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    return texts


async def storm(endpoint: Endpoint, accounts: Accounts, seed: int, count: int) -> None:
    """Send so many requests in several conversations at once."""
    chance = random.Random(seed)
    conversations = [
        Conversation(endpoint, accounts, random.Random(chance.random()), f"conversation {at}")
        for at in range(_CONVERSATIONS)
    ]
    await asyncio.gather(*(one.play(lambda: accounts.requests < count) for one in conversations))
