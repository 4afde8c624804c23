"""Requests with random disconnects, duplicates and delays: no turn is lost, doubled, or trained without its receipt."""

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from rollout.environments.endpoint import Endpoint
from rollout.trainer import check, samples
from tests.unit.gateway.served import serve
from tests.unit.gateway.storm import Accounts, storm

COUNT = {"full": 5000, "ci": 1000}.get(os.environ.get("ROLLOUT_TESTS", ""), 150)
SEEDS = (0, 1) if COUNT > 150 else (0,)


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_turn_is_lost_or_doubled_and_only_received_turns_train(tmp_path: Path, seed: int) -> None:
    accounts = Accounts()
    latencies = random.Random(seed)
    steps: Counter[str] = Counter()
    texts: dict[int, str] = {}

    def latency() -> float:
        if latencies.random() < 0.3:
            time.sleep(0.02)  # the engine is busy, so that aborts are answered late
        return latencies.uniform(0.005, 0.03)

    async def program(endpoint: Endpoint) -> None:
        await storm(endpoint, accounts, seed, COUNT)
        for turn in endpoint.transcript.turns:
            steps[str(turn.messages[-1]["content"])] += 1
            texts[turn.turn] = turn.text

    async with serve(tmp_path) as served:
        served.engine.latency = latency
        played = await served.play(program)

    print(dict(accounts.fates), f"turns {len(texts)}, received {len(accounts.received)}")
    assert accounts.mistakes == []
    assert accounts.requests >= COUNT
    trajectory = played.trajectory
    assert check(trajectory) == []
    assert sorted(step.turn for step in trajectory.steps) == sorted(texts)
    lost_or_doubled = {
        name: (steps[name], accounts.turns[name], accounts.possible[name], accounts.histories[name])
        for name in {*steps, *accounts.turns}
        if not accounts.turns[name] <= steps[name] <= accounts.turns[name] + accounts.possible[name]
    }
    assert lost_or_doubled == {}
    trained = {texts[turn] for sample in samples(trajectory) for turn in set(sample.turn_index[sample.mask].tolist())}
    assert trained == accounts.trained
    assert trajectory.untrained_turns == {turn for turn, text in texts.items() if text not in accounts.trained}
