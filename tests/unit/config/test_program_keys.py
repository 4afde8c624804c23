"""The errors for wrong keys of a program say what to write, and do not repeat what they already name."""

from pathlib import Path

import pytest

from rollout.config.load import load_config
from rollout.config.source import ConfigFileError

CONFIG = """
environment:
  class: rollout.environments.program:Program
  {keys}
model: {{name: tiny, path: builtin:tiny, renderer: qwen3-vl}}
run: {{name: r, directory: runs}}
"""
COMMAND = "command: [agent]"
SCORE = "score: scores:right"


def load_error(directory: Path, *keys: str, **options: str) -> str:
    """Return what is wrong with these keys, without the file and the line."""
    path = directory / "config.yaml"
    path.write_text(CONFIG.format(keys="\n  ".join(keys)))
    with pytest.raises(ConfigFileError) as error:
        load_config(path, [f"{name}={value}" for name, value in options.items()])
    return str(error.value).partition(": ")[2]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("command: python a.py '{task.question}'", 'write command: ["python", "a.py", "{task.question}"].'),
        ("command: python a.py | tee log", 'write command: ["sh", "-c", "python a.py | tee log"].'),
        ("command: don't", """write command: ["don't"]."""),
        (
            "command: [agent, {task.question}]",
            "environment.command.1: without quotes, YAML reads {task.question} as a key and not as a text; write it in "
            'quotes: "{task.question}".',
        ),
        ("command: []", "environment: has neither command nor agent; write command: […], or agent: codex."),
    ],
)
def test_a_wrong_command_shows_what_to_write(tmp_path: Path, key: str, message: str) -> None:
    assert load_error(tmp_path, key, SCORE).endswith(message)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("failures: [300]", "expected nonzero, none, or a list of exit codes from 0 to 255, found [300]."),
        ("failures: some", "expected nonzero, none, or a list of exit codes from 0 to 255, found 'some'."),
        ("env: {A=B: x}", "expected names without `=`, and texts without NUL; 'A=B' is not possible."),
        ("env: {ROLLOUT_WORKSPACE: x}", "ROLLOUT_WORKSPACE is set by the worker, which finds the processes"),
    ],
)
def test_an_exit_code_or_a_variable_that_is_not_possible_is_named(tmp_path: Path, key: str, message: str) -> None:
    assert message in load_error(tmp_path, COMMAND, SCORE, key)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ((COMMAND, "agent: codex"), "environment: has both command and agent; leave one out."),
        ((COMMAND, "prompt: Go"), "environment: prompt: only for a known agent (the key agent), not for command."),
        (("agent: codx",), "Start any other program with environment.command."),
        ((COMMAND, "sandbox: bwarp"), "(its entry point is in the group rollout.sandboxes)."),
        ((COMMAND, "stdin: '{workdr}'"), "Write {{workdr}} if you mean the text itself."),
        ((COMMAND, "files: {../x: a}"), "such as src/main.py, without `..`."),
        ((COMMAND, "files: {/x: a}"), "such as src/main.py, without `..`."),
        (
            (COMMAND, "limits: {memory_bytes: 500MB}"),
            "environment.limits.memory_bytes: expected a whole number of bytes, such as 500000000, found '500MB'.",
        ),
        ((COMMAND, "timeout: 5m"), "environment.timeout: expected seconds, such as 300, found '5m'."),
        (
            (COMMAND, "keep: true"),
            "environment.keep: expected keys and values, as in keep: {when: …}; the keys are when, files, max_bytes, "
            "found True.",
        ),
        ((COMMAND, "env: 3"), "environment.env: expected keys and values, as in env: {NAME: …}, found 3."),
    ],
)
def test_a_wrong_key_is_explained_once(tmp_path: Path, keys: tuple[str, ...], message: str) -> None:
    assert load_error(tmp_path, *keys, SCORE).endswith(message)


FORMS = "expected `package.module:function`, {command: […]}, or program (the program sends its own reward)"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ((), f"environment.score: this key is required; {FORMS}."),
        (("score: 1",), f"environment.score: {FORMS}, found 1."),
        (
            ("score: path/check.py:main",),
            "environment.score: expected a module, not the path of a file; write check:main, and put check.py beside "
            "the YAML file, found 'path/check.py:main'.",
        ),
        (
            ("score: {command: [test], timeout: 4s}",),
            "environment.score.timeout: expected seconds, such as 300, found '4s'.",
        ),
        (
            ("score: {command: test it}",),
            """environment.score.command: expected a list, found 'test it'; write command: ["test", "it"].""",
        ),
    ],
)
def test_a_wrong_score_shows_its_forms(tmp_path: Path, keys: tuple[str, ...], message: str) -> None:
    assert load_error(tmp_path, COMMAND, *keys) == message


def test_a_class_with_a_dot_in_place_of_the_colon_is_recognised(tmp_path: Path) -> None:
    path = "rollout.environments.program.Program"
    error = load_error(tmp_path, COMMAND, SCORE, **{"environment.class": path})
    assert error.endswith(f"found {path!r}; did you mean rollout.environments.program:Program?")
