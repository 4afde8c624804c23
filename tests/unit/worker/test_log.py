"""The lines that an environment logs."""

import json
from pathlib import Path

import structlog
from structlog.testing import capture_logs

from rollout.engine.errors import EngineUnreachable
from rollout.environments.base import Model, Score
from rollout.environments.program import Program
from rollout.log import log_to_json_file
from rollout.records.task import Task
from rollout.testing import play
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


async def test_an_error_that_explains_itself_is_logged_without_a_traceback() -> None:
    settings = {"command": ["sh", "-c", "echo no file; exit 3"], "score": "program"}
    with capture_logs() as logs:
        await play(Program, settings=settings, answers=[])
    (text,) = [line["exception"] for line in logs if line["event"] == "rollout failed"]
    assert text.startswith("ProgramFailed: ")
    assert "\nno file\n" in text
    assert "Traceback" not in text


async def test_an_error_of_an_environment_is_logged_with_its_traceback(workers: WorkerFactory) -> None:
    async def fail(task: Task, model: Model) -> Score:
        raise ValueError("a bug of its own")

    with capture_logs() as logs:
        await workers.play_one_task(fail)
    (text,) = [line["exception"] for line in logs if line["event"] == "rollout failed"]
    assert "in fail\n" in text
    assert text.endswith("ValueError: a bug of its own\n")
