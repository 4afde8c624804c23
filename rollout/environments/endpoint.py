"""Defines the endpoint: an address at which an agent program calls the policy as if it were a model of a provider.

    async with model.endpoint() as endpoint:
        process = await asyncio.create_subprocess_exec("my-agent", env={**os.environ, **endpoint.environ})
        await process.wait()
    return Score(reward=float("42" in endpoint.transcript.text))

The program may speak chat completions, Responses or Messages. Its turns are recorded and trained like those of `chat`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rollout.errors import RolloutError
from rollout.records.conversations import Echo, RootKind
from rollout.records.messages import Message


class EndpointUnavailable(RolloutError):
    """`model.endpoint()` cannot be used where the rollout is played."""


@dataclass(frozen=True, slots=True)
class EndpointSocket:
    """A unix socket at which the gateway listens for one endpoint alone, for a program without a network.

    Attributes:
        path: the path of the socket. The gateway makes it, and removes it with the endpoint.
        address: the HOST:PORT that the program sees; something beside the program forwards it to the socket.
    """

    path: Path
    address: str


@dataclass(frozen=True, slots=True)
class PostedReward:
    """The reward that a program sent with `POST …/reward`; the last one counts.

    Attributes:
        reward: the reward; a finite number. None if `rewards` has named ones.
        rewards: named rewards.
        metrics: further numbers by name.
    """

    reward: float | None
    rewards: Mapping[str, float]
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ConversationRoot:
    """How a program began conversations. Those with the same first message and the same tools have the same root.

    Attributes:
        node: the index of its first message in the rollout; it identifies the root.
        first_turn: the number of the first turn.
        turns: the number of its turns.
        sampled_tokens: the number of tokens that the policy sampled in these turns.
        system: the text of the system message; empty without one.
        user: the text of the first user message; empty without one.
        tools: the names of the tools.
    """

    node: int
    first_turn: int
    turns: int
    sampled_tokens: int
    system: str
    user: str
    tools: tuple[str, ...]


RootRule = Callable[[Sequence[ConversationRoot]], Sequence[RootKind]]
"""Says for each root of an endpoint, in the order of their first turns, of which kind it is."""


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """How an environment wants an endpoint.

    Attributes:
        root_kinds: the rule for the kinds of roots; None: the rule of the gateway.
        socket: a unix socket for this endpoint alone; None: none.
        accept_reward: whether the program may send its own reward with `POST …/reward`.
    """

    root_kinds: RootRule | None = None
    socket: EndpointSocket | None = None
    accept_reward: bool = False


DEFAULT_ENDPOINT_OPTIONS = EndpointOptions()


@dataclass(frozen=True, slots=True)
class EndpointTurn:
    """A turn that a program played.

    Attributes:
        turn: the number of the turn in the rollout, as in `Reply.turn`.
        dialect: the dialect of the request: `chat`, `responses` or `messages`.
        messages: the conversation, with images as references.
        reply: the message of the policy.
        echo: how the program repeated earlier answers; None if the conversation had none.
        root: the root of the conversation, as in `ConversationRoot.node`.
        received: whether the program received the answer. Only such turns train.
    """

    turn: int
    dialect: str
    messages: Sequence[Message]
    reply: Message
    echo: Echo | None
    root: int
    received: bool

    @property
    def text(self) -> str:
        """The text of the reply."""
        content = self.reply.get("content") or ""
        return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


@dataclass(frozen=True, slots=True)
class Transcript:
    """What a program has played until now.

    Attributes:
        turns: the turns in the order in which they began.
        roots: the kind of each root, by the root's node.
    """

    turns: tuple[EndpointTurn, ...]
    roots: Mapping[int, RootKind]

    @property
    def text(self) -> str:
        """The text of the last answer that the program received in its main conversation; empty if there is none."""
        main = [turn for turn in self.turns if turn.received and self.roots.get(turn.root) is RootKind.MAIN]
        return main[-1].text if main else ""


class Endpoint(Protocol):
    """An address of the policy for one program or several. Its key identifies the attempt, and ends with it.

    Attributes:
        base_url: the address for clients of OpenAI's APIs; it ends in `/v1`.
        anthropic_base_url: the address for clients of Anthropic's API.
        key: the API key.
        keyed_base_url: `base_url` with the key in its path, for programs that can set only an address.
        keyed_anthropic_base_url: the same for `anthropic_base_url`.
        model: the name of the model; it has no slash.
        environ: the environment variables that SDKs and command-line agents read. They contain the key, so give them to
            the program alone, and not to programs that score its work.
        unix_socket: the path of the unix socket: that of this endpoint alone, or else `gateway.unix_socket`. None if
            there is none.
    """

    base_url: str
    anthropic_base_url: str
    key: str
    keyed_base_url: str
    keyed_anthropic_base_url: str
    model: str
    environ: Mapping[str, str]
    unix_socket: Path | None

    @property
    def posted_reward(self) -> PostedReward | None:
        """The reward that the program sent with `POST …/reward`; None if it sent none."""
        ...

    @property
    def transcript(self) -> Transcript:
        """What was played until now; it can also be read after the endpoint was closed."""
        ...
