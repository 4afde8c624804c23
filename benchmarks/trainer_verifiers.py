"""The same rollouts on verifiers 0.4.0's wire: streamed as one delta a turn, assembled, validated, made into arrays."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import verifiers.v1 as verifiers
from verifiers.v1.serve.delta import DeltaStreamer, EpisodeAssembly, TraceSummary, dump, pack, unpack

from rollout.trainer import Trajectory


@dataclass(frozen=True, slots=True)
class Served:
    """What verifiers' server sends for one rollout."""

    deltas: tuple[bytes, ...]
    head: dict[str, Any]
    summaries: tuple[Any, ...]

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.deltas))

    def decode(self) -> Any:
        """What its client makes of that."""
        assembly = EpisodeAssembly()
        for delta in self.deltas:
            assembly.apply(unpack(delta))
        return verifiers.WireEpisode.model_validate(assembly.finish(self.head, self.summaries))


def served(trajectory: Trajectory) -> Served:
    """Each turn brings the question as a preview, then its two messages with every id and flag, and the call."""
    assert trajectory.started is not None
    task = {"type": "Task", "data": {"idx": 0, "prompt": ""}}
    nodes = [
        {
            "parent": None if node.parent < 0 else node.parent,
            "sampled": node.sampled,
            "message": _message(node.message, trajectory.started.assets, trajectory.images),
            **_tokens(node.run),
        }
        for node in trajectory.nodes
    ]
    whole = verifiers.WireTrace.model_validate(
        {
            "task": task,
            "agent": {"config": {}},
            "nodes": nodes,
            "rewards": {"reward": {"score": trajectory.reward, "weight": 1.0}},
            "is_completed": True,
            "ok": True,
        }
    )
    live = verifiers.WireTrace.model_validate({**dump(whole), "nodes": []})
    streamer = DeltaStreamer(lambda: [live], None)
    deltas: list[bytes] = []

    def flush() -> None:
        for name, delta, cursor in streamer.diff():
            deltas.append(pack(delta))
            streamer.cursors[name] = cursor

    for first in range(0, len(whole.nodes), 2):
        live.preview(first, [whole.nodes[first].message])
        flush()
        live.clear_preview(first)
        live.nodes += whole.nodes[first : first + 2]
        live.calls.append(verifiers.ModelCall(node=first + 1, model="scripted", finish_reason="stop"))
        flush()
    head = dump(verifiers.WireEpisode.model_validate({"task": task, "ok": True}))
    del head["traces"]
    summary = TraceSummary(id=live.id, nodes=len(live.nodes), calls=len(live.calls))
    return Served(tuple(deltas), head, (summary,))


def arrays(episode: Any) -> list[tuple[Any, ...]]:
    """What a trainer needs of each branch: ids, mask, log-probs."""
    return [
        (
            np.array(branch.token_ids, np.int32),
            np.array(branch.sampled_mask, np.bool_),
            np.array(branch.logprobs, np.float32),
        )
        for trace in episode.traces
        for branch in trace.branches
    ]


def measure(trajectory: Trajectory, count: int) -> dict[str, float]:
    """Rollouts per second of CPU time."""
    wire = served(trajectory)
    (made,) = arrays(wire.decode())
    assert made[1].sum() == sum(len(node.run.logprobs) for node in trajectory.nodes)
    begin = time.process_time()
    for _ in range(count):
        wire.decode()
    decoded = time.process_time()
    for _ in range(count):
        arrays(wire.decode())
    sampled = time.process_time()
    return {
        "bytes": wire.nbytes,
        "decoded": count / (decoded - begin),
        "decoded and made into arrays": count / (sampled - decoded),
    }


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


def _tokens(run: Any) -> dict[str, Any]:
    lengths = {slot.offset: slot.length for slot in run.images}
    ids = [token for at, token in enumerate(run.ids.tolist()) for _ in range(lengths.get(at, 1))]
    sampled = len(run.ids) - run.sampled_from
    return {
        "token_ids": ids,
        "mask": [False] * (len(ids) - sampled) + [True] * sampled,
        "is_content": [True] * len(ids),
        "logprobs": run.logprobs.tolist(),
    }
