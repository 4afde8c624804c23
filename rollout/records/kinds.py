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

ROOT = -1
"""The parent of a node that has none: it begins a conversation."""


class RecordError(RolloutError):
    """A record is not one of ours, is damaged, or comes from a newer major version."""


@dataclass(frozen=True, slots=True)
class NamedReward:
    """One of several rewards of a rollout, whose own reward is the sum of `value * weight`.

    Attributes:
        value: the reward that the environment gave, before it is weighted.
        weight: the factor of the value in the sum.
    """

    value: float
    weight: float


class HasRolloutIdentity:
    """The base of records that belong to a rollout: the name of the rollout, unique among runs that share a queue."""

    __slots__ = ()
    run: str
    environment: str
    group: str
    rollout: str

    @property
    def identity(self) -> str:
        """The rollout as RUN/ENVIRONMENT/ROLLOUT."""
        return f"{self.run}/{self.environment}/{self.rollout}"

    @property
    def group_identity(self) -> str:
        """The group as RUN/ENVIRONMENT/GROUP."""
        return f"{self.run}/{self.environment}/{self.group}"


@dataclass(frozen=True, slots=True)
class RecordHeader(HasRolloutIdentity):
    """Names the attempt that a record belongs to, and numbers the record in it.

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
    """Return the header of a record that cannot be decoded, from its tag and its key; None if the tag is not ours.

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
    """The first record of an attempt: what is true for the whole attempt.

    Attributes:
        header: the attempt that the record belongs to, and the record's number in it.
        task: the `id`, `index`, `seed` and `data` of the task, as in `Task`.
        sample: the number of the rollout in its group, from 0 on.
        group_size: how many rollouts the group has.
        policy_version: the trainer's version of the policy when the attempt started, as far as the worker knew.
        config_digest: the digest of the configuration, see `Config.digest`.
        model: the name under which the engines serve the model.
        pad_id: the image pad token; None for a model without images.
        assets: the path of the directory with the run's images.
        layout: what the descriptors of all images share: `family`, `fingerprint`, and for some families
            `vllm_modality`; empty for a model without images.
        extra: the fields of a newer minor version of the schema, which this version does not know; mostly empty.
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
    """Where a prompt's tokens come from: from a bridge, or from a full render, which has a reason.

    The last three are the adapter's own reasons, see `renderers_adapter.adapter.BridgeRefusalReason`.

    Attributes:
        BRIDGE: a known path was extended.
        FIRST: the prompt is the first of the rollout.
        NEW_CONVERSATION: the first message is new: another conversation of the rollout, such as that of a sub-agent.
        RETRY: all messages are known, and the policy answered none of them before.
        COMPACTION: the first messages are known, and the history after them was cut, summarised or edited.
        ASSISTANT: the new messages contain an answer that the policy did not give in this rollout.
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
class MessageTokens:
    """A message and the tokens that it adds to its conversation.

    Attributes:
        message: the message in canonical form, which names images by hash.
        run: the tokens in logical ids, those of the template included. `run.ids[run.sampled_from:]` were sampled by the
            policy; a message that it did not sample has `run.sampled_from == len(run.ids)`.
        content: (begin, end) in `run.ids` of the tokens that are the message's own text, without the template's; empty
            for an answer, whose own tokens are the sampled ones.
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
        parent: the index of the node to which the first new node is added; -1 (`ROOT`): the first new node is a root.
        first: the index of the first new node among all nodes of the attempt; the others have the next indices.
        nodes: the new nodes, at least one; each is the child of the one before it, and the last is the policy's answer.
        images: the images that no earlier step described, by hash: the `payload` of the layout, and either
            `raw_image_id`, the image's file name in `RolloutStarted.assets`, or `raw_uri`, its `data:` URI.
        prompt_source: where the tokens of the prompt come from.
        prompt_length: how many tokens the prompt had, with its images expanded.
        prompt_digest: the digest of the prompt's expanded ids and of its images, see `evidence.prompt_digest`.
        finish_reason: why the answer ended.
        answer_digest: the digest of the sampled tokens and their log-probs, as the engine gave them; empty in records
            of schema versions before 1.01.
        stop_reason: the id of the stop token or the stop text that ended the answer; None if the engine named none.
        versions: which weights sampled which of the answer's tokens, in order and without a gap; empty if the engine
            did not report it.
        policy: the trainer's policy version when the turn began and when it ended, as far as the worker knew; None in
            a record that lacks it.
        cached_tokens: how many tokens of the prompt were in the engine's prefix cache; None if the engine did not
            report it.
        tools: the schemas of the tools, if the turn begins a root; None without tools, and below a root, whose tools
            are then used.
        routed_experts: which experts of the network processed the tokens; None if the engine did not report it.
        sampling_mask: which tokens could have been sampled; None if the engine did not report it.
        banned_ids: the ids of the tokens that the engine was forbidden to sample; empty in records of schema versions
            before 1.02. `TrainingSample.banned_ids` says what this means for log-probs.
        timings: the seconds that each stage of the turn took: `prepare`, `render`, `engine` and `parse`.
        extra: the fields of a newer minor version of the schema, which this version does not know; mostly empty.
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
    timings: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def leaf(self) -> int:
        """The index of the last new node, which is the answer."""
        return self.first + len(self.nodes) - 1


@dataclass(frozen=True, slots=True)
class RolloutFinished:
    """The last record of an attempt; each attempt has at most one.

    Attributes:
        header: the attempt that the record belongs to, and the record's number in it.
        status: whether the rollout has a score.
        reward: the reward; None if the rollout has no score.
        metrics: the environment's own numbers, by name; empty if it gave none.
        error: the `type` and the `message` of the error that ended the rollout; None without an error.
        steps: how many steps the attempt has.
        digest: the digest of all steps as they were sent, so that the reader notices a lost step.
        seconds: how long the attempt took.
        limit: which limit stopped the rollout.
        rewards: the named rewards, whose weighted sum is the reward; empty if the score had a single reward.
        turn_rewards: the rewards of single answers, by `Step.turn`; they are not part of the reward.
        extra: the fields of a newer minor version of the schema, which this version does not know; mostly empty.
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
"""A record on the trajectories queue."""

STEPS_DIGEST_BYTES = 16
"""Bytes of the digest of an attempt's steps."""


class StepsDigest:
    """Computes the digest of an attempt's steps, one by one; the worker and the reader use it."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=STEPS_DIGEST_BYTES)

    def add(self, frames: Sequence[bytes | memoryview]) -> None:
        """Add the frames of the next step, as they are on the queue."""
        for frame in frames:
            self._hash.update(frame)

    def digest(self) -> bytes:
        """Return the digest of the steps that were added until now."""
        return self._hash.digest()
