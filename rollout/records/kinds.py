"""What a rollout says of itself to the trainer: it starts, takes steps, and finishes exactly once.

A step carries what its turn added and nothing else: the new nodes, and the descriptors of images that the rollout had
not introduced before. Messages name images by hash. How the records look on the queue is the business of
`rollout.records.wire`.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from renderers_adapter.tokens import TokenRun
from rollout.errors import RolloutError
from rollout.records.evidence import RoutedExperts, SamplingMask, VersionSpan
from rollout.records.messages import FinishReason, Message


class RecordError(RolloutError):
    """A record is not one of ours, is damaged, or comes from a newer major version."""


class RolloutStatus(StrEnum):
    """How a rollout ended. `ok` and `truncated` carry a reward and train; the others do not."""

    OK = "ok"
    TRUNCATED = "truncated"
    FAILED = "failed"
    ABANDONED = "abandoned"


class HasRolloutIdentity:
    """What belongs to a rollout, and names it among those of all runs and environments that share a queue."""

    __slots__ = ()
    run: str
    environment: str
    group: str
    rollout: str

    @property
    def identity(self) -> str:
        """The rollout's name."""
        return f"{self.run}/{self.environment}/{self.rollout}"

    @property
    def group_identity(self) -> str:
        """Its group's name."""
        return f"{self.run}/{self.environment}/{self.group}"


@dataclass(frozen=True, slots=True)
class RecordHeader(HasRolloutIdentity):
    """Whose record it is. Records of one attempt are numbered by `seq` from 0 without a gap."""

    run: str
    environment: str
    group: str
    rollout: str
    attempt: int
    seq: int

    @property
    def tag(self) -> str:
        """The label outside of the payload: it names the rollout even if the record cannot be decoded."""
        return f"{self.identity}#{self.attempt}.{self.seq}"


_TAG_PATTERN = re.compile(r"([^/]*)/([^/]*)/(.*)#(\d+)\.(\d+)", re.DOTALL)


def header_from_tag(tag: str, group: str) -> RecordHeader | None:
    """The header of a record that cannot be decoded, from its tag and its key, which is its group."""
    match = _TAG_PATTERN.fullmatch(tag)
    if match is None:
        return None
    run, environment, rollout, attempt, seq = match.groups()
    return RecordHeader(run, environment, group, rollout, int(attempt), int(seq))


@dataclass(frozen=True, slots=True)
class RolloutStarted:
    """What holds for a whole attempt. `layout` is the part of every image's descriptor that they share."""

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
    """Where a prompt's tokens come from: a bridge, or a full render and why.

    The last three are the adapter's own reasons, see `renderers_adapter.adapter.BridgeRefusalReason`.

    Attributes:
        BRIDGE: a known path was extended.
        FIRST: nothing was said in this rollout yet.
        ROOT: another conversation of the same rollout, such as a sub-agent's: its first message is new.
        RETRY: all of its messages are known, and the policy answered none of them before.
        COMPACTION: it begins like a known conversation, then its history was cut, summarised or edited.
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
    """One new node; the nodes of a step hang from each other in order."""

    message: Message
    run: TokenRun
    content: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One turn. `nodes` get the indices from `first` on and hang below `parent` (-1: a root)."""

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
    """Of the sampled tokens and their log-probs, as the engine gave them; records before 1.01 lack it."""
    stop_reason: str | int | None = None
    versions: tuple[VersionSpan, ...] = ()
    policy: tuple[str, str] | None = None
    """The trainer's policy version when the turn began and when it ended, as far as the worker knew."""
    cached_tokens: int | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    routed_experts: RoutedExperts | None = None
    sampling_mask: SamplingMask | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def leaf(self) -> int:
        """The node that was sampled."""
        return self.first + len(self.nodes) - 1


@dataclass(frozen=True, slots=True)
class RolloutFinished:
    """The one end of an attempt. `digest` covers its steps as they were sent, so that a lost one is noticed."""

    kind: ClassVar[str] = "rollout_finished"
    header: RecordHeader
    status: RolloutStatus
    reward: float | None
    metrics: Mapping[str, float]
    error: Mapping[str, str] | None
    steps: int
    digest: bytes
    seconds: float
    extra: Mapping[str, Any] = field(default_factory=dict)


Record = RolloutStarted | Step | RolloutFinished


class StepsDigest:
    """A running digest over an attempt's steps, computed alike by the worker and by the reader."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, frames: Sequence[bytes | memoryview]) -> None:
        for frame in frames:
            self._hash.update(frame)

    def digest(self) -> bytes:
        return self._hash.digest()
