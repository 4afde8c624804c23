"""Measures the rollout of `trainer.py` with verifiers 0.4.0: streamed as by its server, decoded as by its client.

What is compared:

    content     the same messages with images by URL, expanded token ids, log-probs, and flags for sampled tokens and
                content. Each turn has one call, with its settings, usage and times.
    wire        `DeltaStreamer` makes the deltas: a preview of each question, then its nodes and its call
    decoded     each delta is unpacked and applied to `EpisodeAssembly`, and the result validated as a `WireEpisode`.
                The bytes are in memory, without sockets; ours come from a queue on disk, with leases
    in hand     arrays of each branch: token ids, mask, log-probs, token types, content flags, and its images' URLs.
                Ours also have the version and the role of each token, and the place of each image
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import verifiers.v1 as verifiers
from verifiers.v1.serve.delta import DeltaStreamer, EpisodeAssembly, TraceSummary, dump, pack, unpack

from rollout.trainer import TrainingSample, Trajectory, TrajectoryNode
from rollout.trainer.testing import PAD_ID


@dataclass(frozen=True, slots=True)
class VerifiersRollout:
    """What verifiers' server sends for one rollout.

    Attributes:
        deltas: the packed deltas, in the order of sending.
        head: the episode without its traces.
        summaries: one summary per trace, which the client needs to finish the episode.
    """

    deltas: tuple[bytes, ...]
    head: dict[str, Any]
    summaries: tuple[Any, ...]

    @property
    def nbytes(self) -> int:
        """How many bytes the deltas have."""
        return sum(map(len, self.deltas))

    def decode(self) -> Any:
        """Return the episode that verifiers' client assembles from the deltas."""
        assembly = EpisodeAssembly()
        for delta in self.deltas:
            assembly.apply(unpack(delta))
        return verifiers.WireEpisode.model_validate(assembly.finish(self.head, self.summaries))


def encode_rollout(trajectory: Trajectory) -> VerifiersRollout:
    """Encode a rollout. A turn sends its question as a preview, then its two messages with all tokens, and its call."""
    assert trajectory.started is not None
    task = {"type": "Task", "data": {"idx": 0, "prompt": ""}}
    nodes = [
        {
            "parent": None if node.parent < 0 else node.parent,
            "sampled": node.sampled,
            "message": _message(node.message, trajectory.started.assets, trajectory.images),
            **_tokens(node),
        }
        for node in trajectory.nodes
    ]
    whole_trace = verifiers.WireTrace.model_validate(
        {
            "task": task,
            "agent": {"config": {}},
            "nodes": nodes,
            "rewards": {"reward": {"score": trajectory.reward, "weight": 1.0}},
            "mm_token_type_id_map": {PAD_ID: 1},
            "is_completed": True,
            "ok": True,
        }
    )
    partial_trace = verifiers.WireTrace.model_validate({**dump(whole_trace), "nodes": []})
    streamer = DeltaStreamer(lambda: [partial_trace], None)
    deltas: list[bytes] = []

    def flush() -> None:
        for name, delta, cursor in streamer.diff():
            deltas.append(pack(delta))
            streamer.cursors[name] = cursor

    for first in range(0, len(whole_trace.nodes), 2):
        partial_trace.preview(first, [whole_trace.nodes[first].message])
        flush()
        partial_trace.clear_preview(first)
        partial_trace.nodes += whole_trace.nodes[first : first + 2]
        partial_trace.calls.append(_call(whole_trace, first + 1))
        flush()
    head = dump(verifiers.WireEpisode.model_validate({"task": task, "ok": True}))
    del head["traces"]
    summary = TraceSummary(id=partial_trace.id, nodes=len(partial_trace.nodes), calls=len(partial_trace.calls))
    return VerifiersRollout(tuple(deltas), head, (summary,))


def branch_arrays(episode: Any) -> list[tuple[Any, ...]]:
    """Return what a trainer needs of each branch: ids, mask, log-probs, token types, content flags, image URLs."""
    return [
        (
            np.array(branch.token_ids, np.int32),
            np.array(branch.sampled_mask, np.bool_),
            np.array(branch.logprobs, np.float32),
            np.array(branch.mm_token_type_ids or [0] * len(branch.token_ids), np.uint8),
            np.array([flag for node in branch.nodes for flag in node.is_content], np.bool_),
            [
                part.image_url.url
                for message in branch.messages
                if isinstance(message.content, list)
                for part in message.content
                if part.type == "image_url"
            ],
        )
        for trace in episode.traces
        for branch in trace.branches
    ]


def measure(wire: VerifiersRollout, count: int) -> dict[str, float]:
    """Return the rollouts per second of CPU time, by stage."""
    begin = time.process_time()
    for _ in range(count):
        wire.decode()
    decoded_at = time.process_time()
    for _ in range(count):
        branch_arrays(wire.decode())
    arrays_made_at = time.process_time()
    return {
        "verifiers, decoded": count / (decoded_at - begin),
        "verifiers, in hand": count / (arrays_made_at - decoded_at),
    }


def require_same(wire: VerifiersRollout, sample: TrainingSample) -> None:
    """Assert that verifiers' arrays are equal to those of our sample."""
    ((ids, mask, logprobs, types, content, urls),) = branch_arrays(wire.decode())
    assert np.array_equal(ids, sample.token_ids)
    assert np.array_equal(mask, sample.mask)
    assert np.array_equal(logprobs, sample.logprobs)
    assert np.array_equal(types, sample.token_types)
    assert np.array_equal(content, sample.content > 0)
    assert [url.rpartition("/")[2] for url in urls] == [image["raw_image_id"] for image in sample.images]


def _call(trace: Any, node: int) -> Any:
    """Return the call of a turn, with the fields that verifiers' interception records."""
    prompt = sum(len(before.token_ids) for before in trace.nodes[:node])
    answered = sum(trace.nodes[node].mask)
    return verifiers.ModelCall(
        node=node,
        model="scripted",
        sampling={"temperature": 1.0, "max_tokens": 256},
        endpoint="/chat/completions",
        finish_reason="stop",
        usage={"prompt_tokens": prompt, "completion_tokens": answered},
        time={"start": 1.0 + node, "end": 1.75 + node},
    )


def _message(message: dict[str, Any], assets: str, images: Any) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return {"role": message["role"], "content": content}
    parts = [
        {"type": "image_url", "image_url": {"url": f"file://{assets}/{images[part['hash']]['raw_image_id']}"}}
        if part["type"] == "image"
        else {"type": "text", "text": part["text"]}
        for part in content
    ]
    return {"role": message["role"], "content": parts}


def _tokens(node: TrajectoryNode) -> dict[str, Any]:
    run = node.run
    lengths = {slot.offset: slot.length for slot in run.images}
    words = {at for first, last in node.content for at in range(first, last)} | set(
        range(run.sampled_from, len(run.ids))
    )
    token_rows = [
        (token, at >= run.sampled_from, at in words, lengths.get(at, 1)) for at, token in enumerate(run.ids.tolist())
    ]
    return {
        "token_ids": [token for token, _, _, count in token_rows for _ in range(count)],
        "mask": [is_sampled for _, is_sampled, _, count in token_rows for _ in range(count)],
        "is_content": [is_content for _, _, is_content, count in token_rows for _ in range(count)],
        "logprobs": run.logprobs.tolist(),
    }
