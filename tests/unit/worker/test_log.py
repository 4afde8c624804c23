"""The lines that an environment logs."""

import json
from pathlib import Path

import structlog

from rollout.engine.errors import EngineUnreachable
from rollout.environments.base import Model, Score
from rollout.log import log_to_json_file
from rollout.records.task import Task
from tests.unit.worker.harness import QUESTION, WorkerFactory


async def test_a_logged_line_names_worker_rollout_attempt_and_turn(workers: WorkerFactory, tmp_path: Path) -> None:
    log, attempts = structlog.get_logger(), 0

    async def log_turns(task: Task, model: Model) -> Score:
        nonlocal attempts
        attempts += 1
        log.info("began")
        for _ in range(2):
            await model.chat(list(QUESTION))
            log.info("asked")
        if attempts == 1:
            raise EngineUnreachable("gone")
        return Score(1.0)

    with log_to_json_file(tmp_path / "log.jsonl", run="tuesday", worker="w-0"):
        async with workers.run(log_turns) as harness:
            await harness.put_orders(1)
            await harness.receive_ended(1)
            await harness.wait_until_acked()
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {(entry["run"], entry["worker"]) for entry in entries} == {("tuesday", "w-0")}
    events = [(entry["event"], entry["rollout"], entry["attempt"], entry.get("turn")) for entry in entries]
    turns = [("began", None), ("asked", 0), ("asked", 1)]
    assert events == [
        *((event, "0.0", 1, turn) for event, turn in turns),
        ("the infrastructure failed", "0.0", 1, None),
        *((event, "0.0", 2, turn) for event, turn in turns),
        ("rollout finished", "0.0", 2, None),
    ]
