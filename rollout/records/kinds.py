"""The records that a rollout sends to the trainer: one at its start, one for each turn, and one at its end.

A step contains only what its turn added: the new nodes, and the descriptors of the images that no earlier step of the
rollout described. Messages name images by hash. `rollout.records.wire` defines how the records look on the queue.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from renderers_adapter.tokens import TokenRun
from rollout.errors import RolloutError
from rollout.records.endings import RolloutLimit, RolloutStatus
from rollout.records.evidence import RoutedExperts, SamplingMask, VersionSpan
from rollout.records.messages import FinishReason, Message


class RecordError(RolloutError):
    """A record is not one of ours, is damaged, or comes from a newer major version."""


@dataclass(frozen=True, slots=True)
class NamedReward:
    """One of several rewards of a rollout.

    Attributes:
        value: the reward that the environment gave.
        weight: how much it counts in the sum that is the rollout's reward.
    """

    value: float
    weight: float


class HasRolloutIdentity:
    """Something that belongs to a rollout; it names the rollout among all runs and environments that share a queue."""

    __slots__ = ()
    run: str
    environment: str
    group: str
    rollout: str

    @property
    def identity(self) -> str:
        """RUN/ENVIRONMENT/ROLLOUT: unique among the runs that share a queue."""
        return f"{self.run}/{self.environment}/{self.rollout}"

    @property
    def group_identity(self) -> str:
        """RUN/ENVIRONMENT/GROUP: unique among the runs that share a queue."""
        return f"{self.run}/{self.environment}/{self.group}"


@dataclass(frozen=True, slots=True)
class RecordHeader(HasRolloutIdentity):
    """To which attempt a record belongs, and its number there.

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
        """The record's tag on the queue: it names the rollout even if the record cannot be decoded."""
        return f"{self.identity}#{self.attempt}.{self.seq}"


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_TAG_PATTERN = re.compile(r"([^/]*)/([^/]*)/(.*)#([0-9]{1,10})\.([0-9]{1,10})", re.DOTALL)


def header_from_tag(tag: str, group: str) -> RecordHeader | None:
    """Return the header of a record that cannot be decoded, from its tag and from its key, which is its group."""
    match = _TAG_PATTERN.fullmatch(tag)
    if match is None or _LONE_SURROGATE.search(tag + group):
        return None
    run, environment, rollout, attempt, seq = match.groups()
    return RecordHeader(run, environment, group, rollout, int(attempt), int(seq))


@dataclass(frozen=True, slots=True)
class RolloutStarted:
    """The first record of an attempt: what is true for the whole attempt.

    Attributes:
        header: to which attempt the record belongs.
        task: the `id`, `index`, `seed` and `data` of the task.
        sample: the number of the rollout in its group, from 0 on.
        group_size: how many rollouts the group has.
        policy_version: the trainer's version of the policy when the attempt started, as far as the worker knew.
        config_digest: the digest of the configuration, see `Config.digest`.
        model: the name under which the engines serve the model.
        pad_id: the image pad token; None for a model without images.
        assets: the directory of the run's images.
        layout: the fields that the descriptors of all images share; empty for a model without images.
        extra: the fields of a newer minor version, which this version does not know.
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
    """Where a prompt's tokens come from: a bridge, or a full render and its reason.

    The last three are the adapter's own reasons, see `renderers_adapter.adapter.BridgeRefusalReason`.

    Attributes:
        BRIDGE: a known path was extended.
        FIRST: it is the first prompt of the rollout.
        NEW_CONVERSATION: another conversation of the same rollout, such as a sub-agent's: its first message is new.
        RETRY: all of its messages are known, and the policy answered none of them before.
        COMPACTION: it begins like a known conversation, but its history was then cut, summarised or edited.
        ASSISTANT: the new messages contain an answer that the policy did not give here.
        THINKING: the template drops earlier reasoning after a new question.
        REFUSED: the renderer cannot prove that a bridge would be right.
    """

    BRIDGE = "bridge"
    FIRST = "first"
    NEW_CONVERSATION = "root"
    RETRY = "retry"
    COMPACTION = "compaction"
    ASSISTANT = "assistant"
    THINKING = "thinking"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One new node of a step; its parent is the node before it in the step.

    Attributes:
        message: the message in canonical form.
        run: the tokens that it adds, and which of them the policy sampled.
        content: (begin, end) of the tokens that are the message's own content, not the template's; none for an answer.
    """

    message: Message
    run: TokenRun
    content: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """The record of one turn.

    Attributes:
        header: to which attempt the record belongs.
        turn: the number of the turn, in the order in which the environment called the model.
        parent: the node to which the first new node is added; -1: it is a root.
        first: the index of the first new node; the others have the next indices.
        nodes: the new nodes; the last one is the policy's answer.
        images: the images that no earlier step described, by hash: the `payload` of the layout, and where the image is.
        prompt_source: where the tokens of the prompt come from.
        prompt_length: how many tokens the prompt had, with its images expanded.
        prompt_digest: the digest of the prompt's expanded ids and of its images, see `evidence.prompt_digest`.
        finish_reason: why the answer ended.
        answer_digest: the digest of the sampled tokens and their log-probs, as the engine gave them; empty in records
            of schema versions before 1.01.
        stop_reason: the stop token or stop text that ended the answer, if the engine named it.
        versions: which weights sampled which of the answer's tokens; empty if the engine does not say it.
        policy: the trainer's policy version when the turn began and when it ended, as far as the worker knew.
        cached_tokens: how many tokens of the prompt were in the engine's prefix cache, if the engine said it.
        tools: the schemas of the tools, if the turn begins a new root; otherwise those of the root are used.
        routed_experts: which experts the engine chose, if it said it.
        sampling_mask: which tokens could have been sampled, if the engine said it.
        banned_ids: the tokens that the engine was forbidden to sample, none in records of schema versions before 1.02;
            `TrainingSample.banned_ids` says what this means for log-probs.
        timings: the seconds that each stage of the turn took.
        extra: the fields of a newer minor version, which this version does not know.
    """

    kind: ClassVar[str] = "step"
    header: RecordHeader
    turn: int
    parent: int
    first: int
    nodes: tuple[NodeRecord, ...]
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
    timings: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def leaf(self) -> int:
        """The index of the node that was sampled."""
        return self.first + len(self.nodes) - 1


@dataclass(frozen=True, slots=True)
class RolloutFinished:
    """The last record of an attempt; each attempt has at most one.

    Attributes:
        header: to which attempt the record belongs.
        status: whether the rollout has a score.
        reward: the reward; None if the rollout has no score.
        metrics: the metrics of the score.
        error: the `type` and the `message` of the error; None if there was none.
        steps: how many steps the attempt has.
        digest: the digest of all steps as they were sent, so that a lost step is noticed.
        seconds: how long the attempt took.
        limit: which limit stopped the rollout.
        rewards: the named rewards, whose weighted sum is the reward; empty if the score had a single reward.
        turn_rewards: the rewards of single answers, by `Step.turn`; they are not part of the reward.
        extra: the fields of a newer minor version, which this version does not know.
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
    extra: Mapping[str, Any] = field(default_factory=dict)


Record = RolloutStarted | Step | RolloutFinished


STEPS_DIGEST_BYTES = 16


class StepsDigest:
    """A running digest of an attempt's steps; the worker and the reader compute it in the same way."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=STEPS_DIGEST_BYTES)

    def add(self, frames: Sequence[bytes | memoryview]) -> None:
        for frame in frames:
            self._hash.update(frame)

    def digest(self) -> bytes:
        return self._hash.digest()
