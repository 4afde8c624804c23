"""A trainer with TRL is killed at random points and resumed: its weights have trained on each group exactly once."""

import json
import multiprocessing
import os
import random
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL
from typing import Any

import anyio
import pytest
from safetensors.torch import load_file

from rollout.serving.tiny_model.checkpoint import make_checkpoint
from rollout.trainer.testing import put_all, scripted_rollout
from tests.needs.trl.killed_training import GROUPS_FILE, PLACES, run
from transports import open_queue

FULL = os.environ.get("ROLLOUT_TESTS") == "full"
KILLS = 10 if FULL else 3
SAVE_STEPS = 2
KILL_PLACES = PLACES if FULL else PLACES[:-1]
STEPS = 2 * SAVE_STEPS * (3 * KILLS if FULL else KILLS) + SAVE_STEPS
"""More than the kills need: the next one is at most two checkpoints after the last one, or after a moment."""
GROUPS_PER_STEP, GROUP_SIZE = 2, 2
RECORDS = GROUP_SIZE * (1 + 2 + 1)
"""The records of a group: each member has a start, two turns and an end."""
DEADLINE = 300.0
_PROGRAM = str(Path(__file__).with_name("killed_training.py"))
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.needs.trl.killed_training"])  # TRL takes seconds to import


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    make_checkpoint(directory, "text")
    return directory


class Killed:
    """A queue with more groups than the training takes, and the checkpoints of the training."""

    def __init__(self, directory: Path, model: Path) -> None:
        self.url = f"file://{directory}/trajectories?lease_time=2"
        self.output = directory / "checkpoints"
        self.groups = [f"{group:05d}" for group in range(STEPS * GROUPS_PER_STEP + 1)]
        self._model = model
        anyio.run(self._fill)

    async def _fill(self) -> None:
        async with open_queue(self.url) as queue:
            for group in self.groups:
                for member in range(GROUP_SIZE):
                    tokens = 2 + (int(group) + member) % 3
                    packets = await scripted_rollout(
                        f"{group}.{member}",
                        group_size=GROUP_SIZE,
                        turns=2,
                        answer_tokens=tokens,
                        turn_rewards={0: float(member)},
                    )
                    await put_all(queue, packets)

    def options(self, *kills: tuple[int, int, str]) -> str:
        return json.dumps(
            {
                "url": self.url,
                "model": str(self._model),
                "output": str(self.output),
                "steps": STEPS,
                "save_steps": SAVE_STEPS,
                "kills": kills,
            }
        )

    def start(self, *kills: tuple[int, int, str]) -> int | None:
        """Train until the end or the kill; return the exit code."""
        process = _FORKS.Process(target=run, args=(self.options(*kills),))
        process.start()
        process.join(DEADLINE)
        process.kill()
        process.join()
        return process.exitcode

    def saved_steps(self) -> list[int]:
        return sorted(int(path.name.rpartition("-")[2]) for path in self.output.glob("checkpoint-*"))

    def weights(self) -> dict[str, Any]:
        loaded: dict[str, Any] = load_file(self.output / f"checkpoint-{STEPS}" / "model.safetensors")
        return loaded

    def assert_each_group_was_trained_once(self) -> None:
        last = self.output / f"checkpoint-{STEPS}" / GROUPS_FILE
        assert json.loads(last.read_text()) == self.groups[:-1]
        assert anyio.run(self._backlog) == RECORDS  # only the group that is too few for a step

    async def _backlog(self) -> int:
        async with open_queue(self.url) as queue:
            return (await queue.stats()).backlog_records


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, Any]:
    """The weights of a trainer that nothing killed."""
    training = Killed(tmp_path_factory.mktemp("undisturbed"), model)
    assert training.start() == 0
    training.assert_each_group_was_trained_once()
    weights, first = training.weights(), load_file(model / "model.safetensors")
    assert not any(weight.equal(first[name]) for name, weight in weights.items())
    return weights


def test_a_killed_trainer_continues_as_if_nothing_had_happened(
    tmp_path: Path, model: Path, undisturbed: dict[str, Any]
) -> None:
    training, choice = Killed(tmp_path, model), random.Random(1)
    places = [*KILL_PLACES, *choice.choices(KILL_PLACES, k=KILLS - len(KILL_PLACES))]
    for place in choice.sample(places, k=KILLS):
        step = max(training.saved_steps(), default=0) + choice.randint(1, 2 * SAVE_STEPS)
        if place in ("writing", "renamed"):
            step += -step % SAVE_STEPS
        assert training.start((0, step, place)) == -SIGKILL, (place, step)
    assert training.start() == 0
    training.assert_each_group_was_trained_once()
    weights = training.weights()
    assert weights.keys() == undisturbed.keys()
    for name, weight in weights.items():
        assert weight.equal(undisturbed[name]), name


def test_torchrun_restarts_a_killed_rank_and_each_group_is_trained_once(tmp_path: Path, model: Path) -> None:
    training, choice = Killed(tmp_path, model), random.Random(2)
    kills = [
        (1, choice.randint(1, SAVE_STEPS), "trained"),
        (0, 2 * SAVE_STEPS, "renamed"),
        (1, 3 * SAVE_STEPS, "moment"),
    ]
    kills = kills if FULL else kills[:1]
    flags = ["--standalone", "--nproc-per-node=2", f"--max-restarts={len(kills)}"]
    # Without the last variable, restarted ranks find the addresses of the dead ones in torchrun's store.
    variables = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *flags, _PROGRAM, training.options(*kills)],
        env={**os.environ, **variables},
        timeout=DEADLINE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.count("exitcode: -9") == len(kills), ended.stdout
    training.assert_each_group_was_trained_once()
