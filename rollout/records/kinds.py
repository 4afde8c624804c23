"""The records that a rollout sends to the trainer: one at its start, one for each turn, and one at its end.

A step contains only what its turn added: the new nodes, and the descriptors of the images that no earlier step of the
rollout described. Messages name images by hash. `rollout.records.wire` encodes the records for the queue.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from renderers_adapter.tokens import TokenRun
from rollout.errors import RolloutError
from rollout.records.conversations import Echo, RootKind
from rollout.records.endings import RolloutLimit, RolloutStatus
from rollout.records.evidence import RoutedExperts, SamplingMask, VersionSpan
from rollout.records.messages import FinishReason, Message

ROOT = -1
"""The value of `parent` for a node that begins a conversation and so has no parent."""


class RecordError(RolloutError):
    """A record cannot be encoded or decoded: it is damaged, not valid, or from another major version of the schema."""


@dataclass(frozen=True, slots=True)
class NamedReward:
    """One of several rewards of a rollout. The rollout's total reward is the sum of their `value * weight`.

    Attributes:
        value: the reward that the environment gave, without the weight.
        weight: the factor by which the value is multiplied.
    """

    value: float
    weight: float


class HasRolloutIdentity:
    """A base class that names a rollout and its group. The names are unique even if several runs share a queue."""

    __slots__ = ()
    run: str
    environment: str
    group: str
    rollout: str

    @property
    def identity(self) -> str:
        """The name of the rollout: RUN/ENVIRONMENT/ROLLOUT."""
        return f"{self.run}/{self.environment}/{self.rollout}"

    @property
    def group_identity(self) -> str:
        """The name of the group: RUN/ENVIRONMENT/GROUP."""
        return f"{self.run}/{self.environment}/{self.group}"


@dataclass(frozen=True, slots=True)
class RecordHeader(HasRolloutIdentity):
    """Identifies a record: the attempt that it belongs to, and its number in this attempt.

    Attributes:
        run: the run's id.
        environment: the name of the environment in the run.
        group: the id of the task; it is also the record's key on the queue.
        rollout: the rollout's id.
        attempt: the number of the attempt, from 1 on.
        seq: the number of the record in its attempt, from 0 on without a gap.
    """

    run: str
    environment: str
    group: str
    rollout: str
    attempt: int
    seq: int

    @property
    def tag(self) -> str:
        """The record's tag on the queue. It names the rollout even if the record cannot be decoded."""
        return f"{self.identity}#{self.attempt}.{self.seq}"


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_TAG_PATTERN = re.compile(r"([^/]*)/([^/]*)/(.*)#([0-9]{1,10})\.([0-9]{1,10})", re.DOTALL)


def header_from_tag(tag: str, group: str) -> RecordHeader | None:
    """Return the header of a record that cannot be decoded, from its tag and key; None if the tag has another form.

    Args:
        tag: the record's tag, as `RecordHeader.tag` writes it.
        group: the record's key on the queue, which is the id of its group.
    """
    match = _TAG_PATTERN.fullmatch(tag)
    if match is None or _LONE_SURROGATE.search(tag + group):
        return None
    run, environment, rollout, attempt, seq = match.groups()
    return RecordHeader(run, environment, group, rollout, int(attempt), int(seq))


@dataclass(frozen=True, slots=True)
class RolloutStarted:
    """The first record of an attempt, with the data that does not change during the attempt.

    Attributes:
        header: the attempt that the record belongs to, and the record's number in it.
        task: the `id`, `index`, `seed` and `data` of the task, as in `Task`.
        sample: the number of the rollout in its group, from 0 on.
        group_size: the number of rollouts in the group.
        policy_version: the trainer's policy version when the attempt started, as far as the worker knew.
        config_digest: the digest of the configuration; see `Config.digest`.
        model: the name under which the engines serve the model.
        pad_id: the id of the image pad token; None for a model without images.
        assets: the path of the directory with the run's images.
        layout: the fields that the descriptors of all images share: `family`, `fingerprint`, and for some families
            `vllm_modality`; empty for a model without images.
        extra: fields that only a newer minor version of the schema has; usually empty.
    """

    kind: ClassVar[str] = "rollout_started"
    header: RecordHeader
    task: Mapping[str, Any]
    sample: int
    group_size: int
    policy_version: str
    config_digest: str
    model: str
    pad_id: int | None
    assets: str
    layout: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)


class PromptSource(StrEnum):
    """How the tokens of a prompt were made: by a bridge, or by a full render for one of several reasons.

    The last five reasons are those of `renderers_adapter.bridge_refusal.BridgeRefusalReason`.

    Attributes:
        BRIDGE: the tokens of the new messages were added to known tokens.
        FIRST: the prompt is the first one of the rollout.
        NEW_CONVERSATION: the first message is new, so another conversation begins, such as that of a sub-agent.
        RETRY: all messages are known, and the policy has not answered any of them yet.
        COMPACTION: the first messages are known, but the history after them was cut, summarised or edited.
        ASSISTANT: the new messages contain an answer that the policy did not give in this rollout.
        THINKING: the template drops earlier reasoning after a new question.
        END_TOKEN: the last answer ended on another stop token than the one with which the template closes it.
        EARLIER_TEXT: with the new messages, the checkpoint's template writes earlier text in another way.
        REFUSED: the renderer cannot be sure that a bridge is correct.
    """

    BRIDGE = "bridge"
    FIRST = "first"
    NEW_CONVERSATION = "root"
    RETRY = "retry"
    COMPACTION = "compaction"
    ASSISTANT = "assistant"
    THINKING = "thinking"
    END_TOKEN = "end_token"  # noqa: S105 - a token of the model, and no password
    EARLIER_TEXT = "earlier_text"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class MessageTokens:
    """A message and the tokens that it adds to its conversation.

    Attributes:
        message: the message in canonical form, which names images by hash.
        run: the tokens in logical ids, including those of the template. The policy sampled
            `run.ids[run.sampled_from:]`. If it sampled none of them, `run.sampled_from` is `len(run.ids)`.
        content: pairs (begin, end) of positions in `run.ids`: the message's own text, without the template's tokens.
            Empty for an answer, because its own tokens are the sampled ones.
    """

    message: Message
    run: TokenRun
    content: tuple[tuple[int, int], ...]

    @property
    def sampled(self) -> bool:
        """Whether the policy sampled this message in this rollout."""
        return self.run.sampled_from < len(self.run.ids)


@dataclass(frozen=True, slots=True)
class Step:
    """The record of one turn.

    Attributes:
        header: the attempt that the record belongs to, and the record's number in it.
        turn: the number of the turn, from 0 on, in the order in which the environment called the model.
        parent: the index of the first new node's parent; -1 (`ROOT`) if this node begins a conversation.
        first: the index of the first new node among all nodes of the attempt; the other new nodes have the next
            indices.
        nodes: the new nodes, at least one. Each is the child of the node before it, and the last is the policy's
            answer.
        images: the images that no earlier step described, by hash. Each has the `payload` of the layout, and either
            `raw_image_id`, its file name in `RolloutStarted.assets`, or `raw_uri`, its `data:` URI.
        prompt_source: how the tokens of the prompt were made.
        prompt_length: the number of tokens in the prompt, with expanded images.
        prompt_digest: the digest of the prompt's expanded ids and of its images; see `evidence.prompt_digest`.
        finish_reason: the reason why the answer ended.
        answer_digest: the digest of the sampled tokens and their log-probs, as the engine returned them; empty in
            records of schema versions before 1.01.
        stop_reason: the stop token's id, or the stop text, that ended the answer; None if the engine did not name one.
        versions: ranges of the answer's tokens with the weights that sampled them, in order and without gaps; empty if
            the engine did not report them.
        policy: the trainer's policy versions when the turn began and when it ended, as far as the worker knew; None if
            the record does not have this field.
        cached_tokens: the number of prompt tokens that were in the engine's prefix cache; None if the engine did not
            report it.
        tools: the tool schemas of a turn that begins a conversation. None if there are no tools, or if the turn
            continues a conversation and uses the tools of its first turn.
        routed_experts: the experts of the network that processed each token; None if the engine did not report them.
        sampling_mask: the tokens that could be sampled at each position; None if the engine did not report them.
        banned_ids: the ids of the tokens that the engine was not allowed to sample; empty in records of schema versions
            before 1.02. `TrainingSample.banned_ids` explains the effect on log-probs.
        echo: how the earlier answers came back in the request; None if the request had no assistant message, or did not
            come through the gateway.
        constrained: whether the request changed the distribution of the answer, such as by a JSON schema or a forced
            tool. The log-probs are then those of another distribution.
        timings: the duration of each stage of the turn, in seconds: `prepare`, `render`, `engine` and `parse`. A turn
            of a program also has `wait`, the time until `gateway.limits.parallel` let it go on.
        extra: fields that only a newer minor version of the schema has; usually empty.
    """

    kind: ClassVar[str] = "step"
    header: RecordHeader
    turn: int
    parent: int
    first: int
    nodes: tuple[MessageTokens, ...]
    images: Mapping[str, Mapping[str, Any]]
    prompt_source: PromptSource
    prompt_length: int
    prompt_digest: bytes
    finish_reason: FinishReason
    answer_digest: bytes = b""
    stop_reason: str | int | None = None
    versions: tuple[VersionSpan, ...] = ()
    policy: tuple[str, str] | None = None
    cached_tokens: int | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    routed_experts: RoutedExperts | None = None
    sampling_mask: SamplingMask | None = None
    banned_ids: tuple[int, ...] = ()
    echo: Echo | None = None
    constrained: bool = False
    timings: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def leaf(self) -> int:
        """The index of the last new node, the answer."""
        return self.first + len(self.nodes) - 1


@dataclass(frozen=True, slots=True)
class RolloutFinished:
    """The last record of an attempt; each attempt has at most one.

    Attributes:
        header: the attempt that the record belongs to, and the record's number in it.
        status: whether the rollout has a score.
        reward: the reward; None if the rollout has no score.
        metrics: the environment's own metrics, by name; may be empty.
        error: the `type` and the `message` of the error that ended the rollout; None without an error.
        steps: the number of steps in the attempt.
        digest: the digest of all steps as they were sent; it shows the reader whether a step was lost.
        seconds: the duration of the attempt, in seconds.
        limit: the limit that stopped the rollout.
        rewards: the named rewards; empty if the score had a single reward. `reward` is their weighted sum.
        turn_rewards: the rewards of single answers, by `Step.turn`; `reward` does not contain them.
        unreceived_turns: the turns whose answers the program did not receive, by `Step.turn`, rising.
        root_kinds: the kinds of the roots, by the index of the root's node. Roots of the kind `MAIN` are left out.
        extra: fields that only a newer minor version of the schema has; usually empty.
    """

    kind: ClassVar[str] = "rollout_finished"
    header: RecordHeader
    status: RolloutStatus
    reward: float | None
    metrics: Mapping[str, float]
    error: Mapping[str, str] | None
    steps: int
    digest: bytes
    seconds: float
    limit: RolloutLimit = RolloutLimit.NONE
    rewards: Mapping[str, NamedReward] = field(default_factory=dict)
    turn_rewards: Mapping[int, float] = field(default_factory=dict)
    unreceived_turns: tuple[int, ...] = ()
    root_kinds: Mapping[int, RootKind] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


Record = RolloutStarted | Step | RolloutFinished
"""A record on the trajectories queue."""

STEPS_DIGEST_BYTES = 16
"""The size of the digest of an attempt's steps, in bytes."""


class StepsDigest:
    """Computes the digest of an attempt's steps, one step after the other. The worker and the reader use it."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=STEPS_DIGEST_BYTES)

    def add(self, frames: Sequence[bytes | memoryview]) -> None:
        """Add the frames of the next step, as they are on the queue."""
        for frame in frames:
            self._hash.update(frame)

    def digest(self) -> bytes:
        """Return the digest of the steps that were added until now."""
        return self._hash.digest()
