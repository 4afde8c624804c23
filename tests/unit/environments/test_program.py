"""`Program` plays a command, and scores what it did."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rollout import RolloutLimit, Score, Task
from rollout.environments.endpoint import Transcript
from rollout.environments.program import Program
from rollout.environments.program_playing import PlayedProgram
from rollout.programs.process import ProgramCannotStart
from rollout.records.endings import RolloutStatus
from rollout.testing import Answer, PlayRollout
from rollout.trainer import check
from tests.conftest import ROOT

AGENT = ["{python}", str(ROOT / "tests" / "programs" / "plain_agent.py"), "{task.question}"]
WRITE_42 = Answer(tool_calls=[("write_file", {"name": "answer.txt", "text": "42"})])
TASK = {"question": "What is 6 * 7?", "right": "42"}
THIS = "tests.unit.environments.test_program"


def right_answer(task: Task, work: Path, transcript: Transcript, exit_code: int) -> Score:
    answer = work / "answer.txt"
    right = answer.is_file() and answer.read_text() == task.data["right"]
    return Score(float(right), metrics={"turns": len(transcript.turns), "exited": exit_code})


def program(code: str, **settings: Any) -> Mapping[str, Any]:
    """Return the settings of a program of a few lines."""
    return {"command": ["{python}", "-c", code], "score": f"{THIS}:always", **settings}


def always(task: Task, work: Path, transcript: Transcript, exit_code: int) -> float:
    return 1.0


def key_as_metric(task: Task, work: Path, transcript: Transcript, exit_code: int) -> Score:
    return Score(1.0, metrics={(work / "key.txt").read_text(): 1})


def error_of(played: Any) -> str:
    assert played.trajectory.status is RolloutStatus.FAILED
    return str(played.trajectory.error["message"])


def test_a_command_plays_and_its_work_is_scored(play_rollout: PlayRollout) -> None:
    played = play_rollout(
        Program, TASK, settings={"command": AGENT, "score": f"{THIS}:right_answer"}, answers=[WRITE_42, "It is 42."]
    )
    assert played.reward == 1.0
    assert played.trajectory.metrics["turns"] == 2
    assert [step.echo for step in played.trajectory.steps] == [None, "exact"]
    assert check(played.trajectory) == []
    assert played.artifacts is not None
    assert (played.artifacts / "output.txt").read_text() == "the answer: It is 42.\n"


WAITS = "import time; print('here', flush=True); time.sleep(600)"


def posts(reward: str) -> str:
    return (
        "import os, urllib.request as u; e = os.environ\n"
        "u.urlopen(u.Request(e['OPENAI_BASE_URL'] + '/reward', " + repr(reward) + ".encode(), "
        "{'Authorization': 'Bearer ' + e['OPENAI_API_KEY']}))"
    )


@pytest.mark.parametrize(
    ("code", "settings", "expected"),
    [
        (
            "import sys; print('oh no'); sys.exit(3)",
            {},
            "ended with the exit code 3. Its last lines:\noh no\nAll of it: rollout inspect RUN_DIR ROLLOUT --full",
        ),
        ("import os; os.kill(os.getpid(), 11)", {}, "the program was ended by the signal 11. It printed nothing."),
        (
            WAITS,
            {"timeout": 0.5},
            "within 0.5 s (environment.timeout), and was ended. Its last lines:\nhere",
        ),
        ("while True: print('x' * 9999)", {"limits": {"output_bytes": 99_999}}, "printed more than 99,999 bytes"),
    ],
)
def test_a_program_that_fails_is_a_failed_rollout_with_its_last_lines(
    code: str, settings: Mapping[str, Any], expected: str, play_rollout: PlayRollout
) -> None:
    played = play_rollout(Program, settings=program(code, **settings), answers=[])
    assert expected in error_of(played)


def test_exit_codes_that_are_no_failures_are_scored(play_rollout: PlayRollout) -> None:
    played = play_rollout(Program, settings=program("raise SystemExit(3)", failures=[1, 2]), answers=[])
    assert played.reward == 1.0
    assert played.trajectory.metrics["exit_code"] == 3


def test_a_program_at_its_timeout_can_be_scored_with_the_limit_time(play_rollout: PlayRollout) -> None:
    played = play_rollout(Program, settings=program(WAITS, timeout=0.5, on_timeout="score"), answers=[])
    assert played.reward == 1.0
    assert played.trajectory.limit is RolloutLimit.TIME


def test_files_the_template_and_the_standard_input_come_before_the_program(
    tmp_path: Path, play_rollout: PlayRollout
) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "notes.txt").write_text("from the template")
    code = "import sys; print(open('notes.txt').read(), open('data/q.txt').read(), sys.stdin.read())"
    settings = program(
        code,
        config_dir=tmp_path,
        template="{task.repository}",
        files={"data/q.txt": "for {task.id}"},
        stdin="model {model}",
    )
    played = play_rollout(Program, {"repository": "repository"}, settings=settings, answers=[])
    assert played.artifacts is not None
    assert (played.artifacts / "output.txt").read_text() == "from the template for 0 model tiny-qwen3-vl\n"


def test_a_score_command_sees_the_work_but_not_the_key(tmp_path: Path, play_rollout: PlayRollout) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "score.py").write_text(
        "import json, os\n"
        "assert not [name for name, value in os.environ.items() if 'OPENAI' in name or 'sk-rollout' in value]\n"
        "print(json.dumps({'rewards': {'written': float(open('answer.txt').read())}, 'metrics': {'m': 2}}))\n"
    )
    code = "open('answer.txt', 'w').write('0.5'); open('score.py', 'w').write('print(1)')"
    score = {"command": ["{python}", "score.py"], "template": "tests"}
    played = play_rollout(Program, settings=program(code, config_dir=tmp_path, score=score), answers=[])
    assert played.reward == 0.5
    assert played.trajectory.metrics["m"] == 2


def test_a_score_command_does_not_run_with_the_home_of_the_program(play_rollout: PlayRollout) -> None:
    code = "import os; h = os.environ['HOME']; open(h + '/.settings', 'w'); open(os.environ['TMPDIR'] + '/x', 'w')"
    left = "import os; print(float(len(os.listdir(os.environ['HOME']) + os.listdir(os.environ['TMPDIR']))))"
    played = play_rollout(Program, settings=program(code, score={"command": ["{python}", "-c", left]}), answers=[])
    assert played.reward == 0.0


@pytest.mark.parametrize("make", ["os.mkfifo('answer.txt')", "os.symlink('/dev/zero', 'answer.txt')"])
def test_a_score_function_cannot_be_held_by_what_the_program_left(make: str, play_rollout: PlayRollout) -> None:
    settings = program(f"import os; {make}", score=f"{THIS}:right_answer")
    played = play_rollout(Program, TASK, settings=settings, answers=[], timeout=60)
    assert played.reward == 0.0


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["{python}", "-c", "print('well done')"], "'well done'"),
        (["{python}", "-c", "raise SystemExit('no tests')"], "ended with the exit code 1. Its last lines:\nno tests"),
    ],
)
def test_a_score_command_that_gives_no_score_fails_the_rollout(
    command: list[str], expected: str, play_rollout: PlayRollout
) -> None:
    played = play_rollout(Program, settings=program("", score={"command": command}), answers=[])
    assert expected in error_of(played)


def test_a_program_may_send_its_own_reward(play_rollout: PlayRollout) -> None:
    played = play_rollout(Program, settings=program(posts('{"reward": 0.25}'), score="program"), answers=[])
    assert played.reward == 0.25


def test_a_program_that_sends_no_reward_fails(play_rollout: PlayRollout) -> None:
    played = play_rollout(Program, settings=program("", score="program"), answers=[])
    assert "the program sent no reward" in error_of(played)


def test_the_key_is_in_no_file_of_the_attempt(play_rollout: PlayRollout) -> None:
    code = "import os; k = os.environ['OPENAI_API_KEY']; print(k, k[:8]); open('log.txt', 'w').write(k)"
    played = play_rollout(Program, settings=program(code, keep={"when": "always", "files": ["*.txt"]}), answers=[])
    assert played.artifacts is not None
    texts = {path.name: path.read_text() for path in played.artifacts.rglob("*") if path.is_file()}
    assert set(texts) == {"output.txt", "log.txt"}
    assert not [name for name, text in texts.items() if "sk-rollout-" in text.replace("sk-rollout\n", "")]


def test_files_are_kept_of_failed_rollouts_alone_by_default(play_rollout: PlayRollout) -> None:
    kept = []
    for code in ("", "; raise SystemExit(1)"):
        settings = program(f"open('log.txt', 'w').write('x'){code}", keep={"files": ["*"]})
        played = play_rollout(Program, settings=settings, answers=[])
        assert played.artifacts is not None
        kept.append((played.artifacts / "kept" / "log.txt").exists())
    assert kept == [False, True]


def test_nothing_of_the_workers_environment_reaches_a_program(
    monkeypatch: pytest.MonkeyPatch, play_rollout: PlayRollout
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_WORKER", "x")
    code = "import os; print(sorted(os.environ)); print(os.environ['OWN'], os.getcwd())"
    played = play_rollout(Program, settings=program(code, env={"OWN": "in {workdir}"}), answers=[])
    assert played.artifacts is not None
    text = (played.artifacts / "output.txt").read_text()
    assert "SECRET_OF_THE_WORKER" not in text
    own, current = text.splitlines()[1].removeprefix("in ").split()
    assert own == current


def test_the_workspace_is_gone_when_the_rollout_has_ended(play_rollout: PlayRollout) -> None:
    played = play_rollout(Program, settings=program("import os; print(os.getcwd())"), answers=[])
    assert played.artifacts is not None
    work = Path((played.artifacts / "output.txt").read_text().strip())
    assert work.name == "work"
    assert not work.parent.exists()


def test_a_program_whose_files_are_too_large_to_keep_still_fails_with_its_own_error(play_rollout: PlayRollout) -> None:
    keep = {"files": ["*"], "max_bytes": 0}
    played = play_rollout(Program, settings=program("open('a.log', 'w').write('x'); exit(3)", keep=keep), answers=[])
    assert "the exit code 3" in error_of(played)
    assert played.artifacts is not None
    assert "'a.log'" in (played.artifacts / "not-kept.txt").read_text()


def test_a_program_that_kills_its_guardian_is_one_failed_rollout(play_rollout: PlayRollout) -> None:
    played = play_rollout(Program, settings=program("import os; os.kill(os.getppid(), 9)"), answers=[])
    assert "the guardian of the program" in error_of(played)


def test_the_name_of_a_metric_has_no_key(play_rollout: PlayRollout) -> None:
    code = "import os; open('key.txt', 'w').write(os.environ['OPENAI_API_KEY'])"
    played = play_rollout(Program, settings=program(code, score=f"{THIS}:key_as_metric"), answers=[])
    assert "a-key-of-the-gateway" in played.trajectory.metrics


def failing_score(task: Task, work: Path, transcript: Transcript, exit_code: int) -> float:
    return float((work / "answer.txt").read_text())


def test_the_error_of_a_score_function_names_it_and_no_path_of_one_rollout(play_rollout: PlayRollout) -> None:
    played = play_rollout(Program, settings=program("", score=f"{THIS}:failing_score"), answers=[])
    expected = "raised FileNotFoundError: [Errno 2] No such file or directory: '{workdir}/answer.txt'"
    assert error_of(played) == f"the score {THIS}:failing_score {expected}"


def test_the_error_of_a_program_has_no_path_of_one_rollout(play_rollout: PlayRollout) -> None:
    code = "import os; print(os.getcwd(), os.environ['HOME'], os.environ['TMPDIR']); exit(1)"
    played = play_rollout(Program, settings=program(code), answers=[])
    assert "\n{workdir} {home} {workspace}/tmp\n" in error_of(played)


def test_a_traceback_of_twenty_lines_is_in_the_error_and_a_long_line_is_cut(play_rollout: PlayRollout) -> None:
    code = "print('cut', 'x' * 3000, 'end'); [print('line', number) for number in range(19)]; exit(1)"
    error = error_of(play_rollout(Program, settings=program(code), answers=[]))
    assert [f"line {number}" in error.splitlines() for number in range(19)] == [True] * 19
    assert "\ncut xxx" in error
    assert "xxx end\n" in error
    assert "x" * 600 not in error


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"command": ["./run.sh"]},
            "environment.command: the program ./run.sh cannot be started: there is no such file; a relative path",
        ),
        (
            {"command": ["./run.sh now"]},
            "environment.command: the program ./run.sh now cannot be started: there is no such file; the first item is "
            "the program alone",
        ),
        (
            {"command": ["{python}", "-c", ""], "score": {"command": ["/no/tests"]}},
            "environment.score.command: the program /no/tests cannot be started: there is no such file; correct the",
        ),
        ({"command": ["./run.sh"], "files": {"run.sh": "#!/bin/sh"}}, "its file is not executable (run chmod +x)"),
    ],
)
def test_a_program_that_cannot_start_is_an_error_with_its_key(
    settings: Mapping[str, Any], problem: str, play_rollout: PlayRollout
) -> None:
    with pytest.raises(ProgramCannotStart) as raised:
        play_rollout(Program, settings={"score": "program", **settings}, answers=[])
    assert problem in str(raised.value)


def test_a_missing_value_of_the_task_is_an_error_with_the_key_that_uses_it(play_rollout: PlayRollout) -> None:
    played = play_rollout(Program, settings=program("", stdin="{task.name}"), answers=[])
    assert error_of(played).startswith("the task has no 'name', which environment.stdin uses; it has id, ")


def test_an_argument_that_linux_refuses_is_an_error_with_its_key(play_rollout: PlayRollout) -> None:
    settings = {"command": ["{python}", "-c", "", "{task.text}"], "score": "program"}
    played = play_rollout(Program, {"text": "x" * 200_000}, settings=settings, answers=[])
    assert error_of(played).startswith("environment.command: the argument 'xxx")


def test_a_saved_configuration_is_accepted_again() -> None:
    settings = Program.Settings(command=("ls",), score="program")
    assert Program.Settings.model_validate(settings.model_dump(mode="json")) == settings


def test_a_template_of_the_task_that_is_missing_is_an_error_with_its_key(play_rollout: PlayRollout) -> None:
    settings = program("", template="{task.repository}", config_dir="/no")
    played = play_rollout(Program, {"repository": "such"}, settings=settings, answers=[])
    assert error_of(played).startswith("environment.template: /no/such is not a directory. Correct the path")


def test_files_that_cannot_be_kept_do_not_replace_the_error_of_the_program(
    monkeypatch: pytest.MonkeyPatch, play_rollout: PlayRollout
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PlayedProgram, "keep_files", fail)
    played = play_rollout(Program, settings=program("exit(3)", keep={"files": ["*"]}), answers=[])
    assert "ended with the exit code 3" in error_of(played)
