"""Records of every kind that later versions must be able to read.

`python -m tests.unit.records.golden.records` writes the files of a new schema.
It never overwrites a file, because that is what an older version sent.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from renderers_adapter.tokens import ImageSlot, TokenRun, as_logical_ids
from rollout.records.conversations import Echo, RootKind
from rollout.records.endings import RolloutLimit, RolloutStatus
from rollout.records.evidence import RoutedExperts, SamplingMask, VersionSpan
from rollout.records.kinds import (
    MessageTokens,
    NamedReward,
    PromptSource,
    Record,
    RecordHeader,
    RolloutFinished,
    RolloutStarted,
    Step,
)
from rollout.records.launch_status import LaunchPhase, LaunchStatus
from rollout.records.messages import FinishReason
from rollout.records.wire import SCHEMA, encode_record, encode_status

DIRECTORY = Path(__file__).parent

_FILE, _INLINE = "0123456789abcdef" * 2, "fedcba9876543210" * 2
_LOOK_TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def header(seq: int) -> RecordHeader:
    return RecordHeader("golden-run", "package.module:Class", "000007", "000007.3", 2, seq)


def step() -> Step:
    """Return a first turn with every field of a step."""
    asked = TokenRun(
        as_logical_ids([5, 900, 6, 900, 7]), 5, images=(ImageSlot(_FILE, 1, 64), ImageSlot(_INLINE, 3, 80))
    )
    said = TokenRun(as_logical_ids([8, 9, 40, 41, 2]), 2, np.array([-0.5, -0.25, 0.0], np.float32))
    parts = [{"type": "image", "hash": _FILE}, {"type": "text", "text": "é?"}, {"type": "image", "hash": _INLINE}]
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"n": 1}}}
    return Step(
        header=header(1),
        turn=0,
        parent=-1,
        first=0,
        nodes=(
            MessageTokens({"role": "user", "content": parts}, asked, ((1, 2), (3, 4))),
            MessageTokens(
                {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]}, said, ()
            ),
        ),
        images={
            _FILE: {"payload": {"image_grid_thw": [[1, 16, 16]]}, "raw_image_id": f"{_FILE}{'7' * 32}.png"},
            _INLINE: {"payload": {"image_grid_thw": [[1, 16, 20]]}, "raw_uri": "data:image/png;base64,AAAA"},
        },
        prompt_source=PromptSource.FIRST,
        prompt_length=149,
        prompt_digest=bytes(range(16)),
        finish_reason=FinishReason.LENGTH,
        stop_reason="square",
        versions=(VersionSpan("7", 0, 1), VersionSpan("8", 1, 3)),
        policy=("7", "8"),
        cached_tokens=16,
        tools=(_LOOK_TOOL,),
        routed_experts=RoutedExperts(0, np.arange(12, dtype=np.uint8).reshape(3, 2, 2)),
        sampling_mask=SamplingMask(np.array([1, 2, 3], np.int32), np.array([1, 1, 1], np.int32)),
        timings={"prepare": 0.001, "engine": 1.5},
    )


def usual_step() -> Step:
    """Return a later turn, which forks and has the default values."""
    asked, said = TokenRun(as_logical_ids([1, 2]), 2), TokenRun(as_logical_ids([3, 4]), 1, np.array([-1.0], np.float32))
    return Step(
        header=header(2),
        turn=1,
        parent=0,
        first=2,
        nodes=(
            MessageTokens({"role": "user", "content": "b"}, asked, ()),
            MessageTokens({"role": "assistant", "content": "c"}, said, ()),
        ),
        images={},
        prompt_source=PromptSource.BRIDGE,
        prompt_length=3,
        prompt_digest=bytes(16),
        finish_reason=FinishReason.STOP,
    )


def proven_step() -> Step:
    """Return a step with the field of schema 1.01: a digest of the engine's answer."""
    return replace(usual_step(), answer_digest=bytes(range(8)))


def banning_step() -> Step:
    """Return a step with the field of schema 1.02: the banned tokens."""
    return replace(proven_step(), banned_ids=(900, 901))


def foreign_step() -> Step:
    """Return a step with the fields of schema 1.05: how earlier answers came back, and a constrained answer."""
    return replace(banning_step(), echo=Echo.FOREIGN, constrained=True)


def other_ended_step() -> Step:
    """Return a step with the source of schema 1.06: the last answer ended on another stop token."""
    return replace(banning_step(), prompt_source=PromptSource.END_TOKEN)


def looking_back_step() -> Step:
    """Return a step with the source of schema 1.07: the template writes earlier text in another way."""
    return replace(banning_step(), prompt_source=PromptSource.EARLIER_TEXT)


def ended_by(
    status: RolloutStatus, limit: RolloutLimit, *, reward: float | None = None, error: str | None = None
) -> RolloutFinished:
    return RolloutFinished(
        header=header(3),
        status=status,
        reward=reward,
        metrics={},
        error=None if error is None else {"type": error, "message": "it was stopped"},
        steps=2,
        digest=bytes(16),
        seconds=0.5,
        limit=limit,
    )


RECORDS: dict[str, Record] = {
    "rollout_started": RolloutStarted(
        header=header(0),
        task={"id": "000007", "index": 7, "seed": 11, "data": {"codeword": ["red", "blue"]}},
        sample=3,
        group_size=4,
        policy_version="7",
        config_digest="0123456789abcdef",
        model="tiny",
        pad_id=900,
        assets="assets/images",
        layout={"family": "qwen_vl", "fingerprint": "a" * 32},
    ),
    "step": step(),
    "usual_step": usual_step(),
    "proven_step": proven_step(),
    "banning_step": banning_step(),
    "foreign_step": foreign_step(),
    "other_ended_step": other_ended_step(),
    "looking_back_step": looking_back_step(),
    "rollout_finished": RolloutFinished(
        header=header(3),
        status=RolloutStatus.OK,
        reward=0.75,
        metrics={"turn_accuracy": 0.5},
        error=None,
        steps=2,
        digest=bytes(range(16)),
        seconds=1.25,
    ),
    "rollout_scored": RolloutFinished(
        header=header(3),
        status=RolloutStatus.OK,
        reward=1.25,
        metrics={},
        error=None,
        steps=2,
        digest=bytes(range(16)),
        seconds=1.25,
        limit=RolloutLimit.TURNS,
        rewards={"answer": NamedReward(1.0, 1.0), "format": NamedReward(0.5, 0.5)},
        turn_rewards={0: 0.25, 1: -1.0},
    ),
    "rollout_of_program": RolloutFinished(
        header=header(3),
        status=RolloutStatus.OK,
        reward=0.75,
        metrics={},
        error=None,
        steps=4,
        digest=bytes(range(16)),
        seconds=1.25,
        unreceived_turns=(1, 3),
        root_kinds={0: RootKind.AUXILIARY, 6: RootKind.SUBAGENT, 9: RootKind.AUXILIARY},
    ),
    "rollout_cut": ended_by(RolloutStatus.OK, RolloutLimit.TOKENS, reward=0.5),
    "rollout_full": ended_by(RolloutStatus.UNSCORED, RolloutLimit.CONTEXT, error="ContextExhausted"),
    "rollout_straggled": ended_by(RolloutStatus.UNSCORED, RolloutLimit.TIME, error="StragglerCut"),
    "rollout_late": ended_by(RolloutStatus.FAILED, RolloutLimit.TIME, error="RolloutTimeout"),
    "rollout_failed": RolloutFinished(
        header=header(3),
        status=RolloutStatus.FAILED,
        reward=None,
        metrics={},
        error={"type": "EngineMismatch", "message": "another prompt"},
        steps=2,
        digest=bytes(16),
        seconds=0.5,
    ),
}

STATUS = LaunchStatus(
    "golden-run", "package.module:Class", 2, LaunchPhase.STOPPED, "/data/golden-run", "node-3", 4711, 1, 4
)

GOLDEN_FRAMES = {name: encode_record(record) for name, record in RECORDS.items()} | {
    "launch_status": encode_status(STATUS)
}
"""The frames of every kind of record, as this version sends them."""

if __name__ == "__main__":
    for name, (frame,) in GOLDEN_FRAMES.items():
        file = DIRECTORY / f"{name}.{SCHEMA}.msgpack"
        if not file.exists():
            file.write_bytes(frame)
