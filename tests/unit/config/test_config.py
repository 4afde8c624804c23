"""Configurations that are accepted, and the errors for those that are refused."""

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from rollout.config.load import load_config
from rollout.config.source import ConfigFileError

VALID = """\
environment:
  class: rollout.environments.color_codeword:ColorCodeword
tasks:
  count: 2
  turns: 3
model:
  name: tiny
  path: models/tiny
  renderer: qwen3-vl
engine:
  sampling:
    temperature: 0.5
"""


def test_configurations_are_read_without_numpy() -> None:
    code = """
import pkgutil, sys
from importlib import import_module
import rollout.config
for module in pkgutil.iter_modules(rollout.config.__path__, "rollout.config."):
    import_module(module.name)
print("numpy" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


def write(directory: Path, text: str = VALID) -> Path:
    path = directory / "env.yaml"
    path.write_text(dedent(text), "utf-8")
    return path


def load_error(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigFileError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_missing_keys_get_their_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path))
    assert config.tasks.group_size == 4
    assert config.tasks.model_dump()["turns"] == 3
    assert config.engine.sampling.temperature == 0.5
    assert config.images.mode == "offload"


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    assert load_config(write(tmp_path)).model.path == tmp_path / "models" / "tiny"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("temperature", "temperatur", "12: engine.sampling.temperatur: unknown key; did you mean 'temperature'?"),
        ("turns: 3", "turn: 3", "5: tasks.turn: unknown key; did you mean 'turns'?"),
        ("0.5\n", "0.5\nquue:\n  url: memory://x\n", "13: quue: unknown section; did you mean 'queue'?"),
        ("0.5\n", "0.5\ntasks:\n  count: 3\n", "13: tasks: this key is given twice"),
        ("count: 2", "count: many", "4: tasks.count: Input should be a valid integer, found 'many'"),
    ],
    ids=["key", "key of the environment", "section", "twice", "type"],
)
def test_a_mistake_is_reported_with_file_line_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write(tmp_path, VALID.replace(old, new))
    assert load_error(path).startswith(f"{path}:{message}")


def test_arguments_of_the_template_are_scalars_by_name(tmp_path: Path) -> None:
    path = write(
        tmp_path, VALID.replace("renderer: qwen3-vl", "renderer: qwen3.5\n  template: {enable_thinking: false}")
    )
    assert load_config(path).model.template == {"enable_thinking": False}
    message = load_error(path, "model.template=template.jinja")
    assert message.startswith("--set model.template: model.template: expected keys and values")
    assert load_error(write(tmp_path, VALID + "model.template: 1\n")).startswith(f"{path}:13: model.template: unknown")


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    path = write(tmp_path, VALID.replace("count: 2", "cuont: 2").replace("renderer: qwen3-vl", "renderr: x"))
    message = load_error(path)
    assert "tasks.cuont" in message
    assert "model.renderr" in message
    assert "model.renderer: this key is required" in message


def test_an_override_replaces_a_key_and_is_named_in_its_error(tmp_path: Path) -> None:
    path = write(tmp_path)
    config = load_config(path, ["engine.sampling.temperature=0", "engine.urls=['http://127.0.0.1:1']", "run.name=x"])
    assert config.engine.sampling.temperature == 0
    assert config.engine.urls == ("http://127.0.0.1:1",)
    assert "--set engine.sampling.temprature: engine.sampling.temprature: unknown key" in load_error(
        path, "engine.sampling.temprature=0"
    )
    assert "expected key=value" in load_error(path, "nonsense")


def test_a_variable_is_replaced_before_its_type_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKS", "7")
    text = VALID.replace("count: 2", "count: ${TASKS}").replace("name: tiny", "name: ${NAME:-tiny-two}")
    config = load_config(write(tmp_path, text))
    assert config.tasks.count == 7
    assert config.model.name == "tiny-two"


def test_a_missing_variable_is_reported_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TASKS", raising=False)
    path = write(tmp_path, VALID.replace("count: 2", "count: ${TASKS}"))
    assert load_error(path).startswith(f"{path}:4: tasks.count: the environment variable TASKS is not set")


@pytest.mark.parametrize(
    ("named", "expected_text"),
    [
        ("nowhere.to_be_found:Env", "no module 'nowhere'"),
        ("rollout.environments.color_codeword:Nothing", "has no 'Nothing'"),
        ("rollout.records.messages:MessageError", "not a subclass of rollout.Environment"),
        ("rollout.records.messages", "expected package.module:Class"),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused(tmp_path: Path, named: str, expected_text: str) -> None:
    path = write(tmp_path, VALID.replace("rollout.environments.color_codeword:ColorCodeword", named))
    assert load_error(path).startswith(f"{path}:2: environment.class: ")
    assert expected_text in load_error(path)


def write_coin(directory: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> Path:
    """Write a module with this code and the YAML of its environment `Coin`; return the path of the YAML."""
    monkeypatch.delitem(sys.modules, "coin_module", raising=False)
    monkeypatch.syspath_prepend(directory)
    imports = "import functools; from rollout import Environment, MultiTurnEnvironment, Score, Turn\n"
    (directory / "coin_module.py").write_text(imports + code)
    return write(directory, "environment: {class: 'coin_module:Coin'}\nmodel: {name: m, path: m, renderer: qwen3-vl}\n")


@pytest.mark.parametrize(
    ("written", "expected_text"),
    [
        (
            "class Coin(Environment):\n    def run(self, task, model): return Score(1.0)",
            "a method run that is not a coroutine",
        ),
        ("class Coin(Environment):\n    pass", "does not define run"),
        (
            "class Coin(MultiTurnEnvironment):\n    def reset(self, task): return []\n"
            "    async def step(self, reply): return Turn()",
            "a method reset that is not a coroutine; write `async def reset`",
        ),
        ("class Coins(Environment):\n    pass", "has no 'Coin'; did you mean 'Coins'?"),
        ("raise AttributeError('of its own')", 'coin_module.py", line 2, in <module>\n'),
    ],
)
def test_a_mistake_in_the_code_of_an_environment_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, expected_text: str
) -> None:
    assert expected_text in load_error(write_coin(tmp_path, monkeypatch, written))


@pytest.mark.parametrize(
    "written",
    [
        "class Coin(Environment):\n    async def run(self, task, model): return Score(1.0)\n    def step(self): pass",
        "def traced(f):\n    @functools.wraps(f)\n    def call(*a): return f(*a)\n    return call\n"
        "class Coin(Environment):\n    @traced\n    async def run(self, task, model): return Score(1.0)",
    ],
    ids=["a step of its own", "a decorated coroutine"],
)
def test_unusual_code_that_is_right_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    assert load_config(write_coin(tmp_path, monkeypatch, written)).environment_class.__name__ == "Coin"


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "just words"])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert str(tmp_path / "env.yaml") in load_error(write(tmp_path, text))


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    assert "No such file" in load_error(tmp_path / "none.yaml")


def test_the_digest_ignores_the_name_of_the_run(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert load_config(path).digest() == load_config(path, ["run.name=other"]).digest()
    assert load_config(path).digest() != load_config(path, ["tasks.seed=1"]).digest()


def test_the_digest_of_the_same_files_is_the_same_elsewhere(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for directory in (here, there):
        directory.mkdir()
        write(directory)
    digest = load_config(here / "env.yaml", ["tasks.source=data/one.jsonl"]).digest()
    assert digest == load_config(there / "env.yaml", ["tasks.source=data/one.jsonl"]).digest()
    assert digest != load_config(here / "env.yaml", ["tasks.source=data/two.jsonl"]).digest()


def test_the_digest_depends_on_the_count_of_tasks_of_a_source(tmp_path: Path) -> None:
    path = write(tmp_path, VALID.replace("  count: 2\n", ""))
    source = "tasks.source=data/one.jsonl"
    assert load_config(path).digest() == load_config(path, ["tasks.count=16"]).digest()
    assert load_config(path, [source]).digest() != load_config(path, [source, "tasks.count=16"]).digest()
    assert load_config(path, [source, "tasks.count=16"]).digest() == "d7a3557d68fdf488"


@pytest.mark.parametrize("value", ['"4"', "true", "4.5", "[4]"])
def test_a_value_of_another_type_is_not_converted(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, VALID.replace("count: 2", f"count: {value}"))
    assert load_error(path).startswith(f"{path}:4: tasks.count: ")


@pytest.mark.parametrize(("value", "limit"), [("0", 0), ("1", 1), ("0.25", 0.25), ("1.0", 1.0), ("null", None)])
def test_the_limit_of_failed_rollouts_is_a_number_or_a_share(
    tmp_path: Path, value: str, limit: int | float | None
) -> None:
    loaded = load_config(write(tmp_path), [f"run.max_failed={value}"]).run.max_failed
    assert (loaded, type(loaded)) == (limit, type(limit))


@pytest.mark.parametrize("value", ["-1", "1.5", "half", "true"])
def test_a_wrong_limit_of_failed_rollouts_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigFileError, match=r"run\.max_failed: .*a share between 0\.0 and 1\.0"):
        load_config(write(tmp_path), [f"run.max_failed={value}"])


def test_the_value_of_a_variable_is_one_scalar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "a: b")
    monkeypatch.setenv("EMPTY", "")
    text = VALID.replace("name: tiny", "name: ${NAME}").replace("models/tiny", "'models/tiny${EMPTY}'")
    config = load_config(write(tmp_path, text))
    assert config.model.name == "a: b"
    assert config.model.path == tmp_path / "models" / "tiny"


@pytest.mark.parametrize("value", ["2026-13-45", "!!int abc", "&a [*a]"])
def test_a_value_that_yaml_cannot_read_is_refused(tmp_path: Path, value: str) -> None:
    assert "env.yaml" in load_error(write(tmp_path, VALID.replace("name: tiny", f"name: {value}")))


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("engine.urls", "http://127.0.0.1:8000", '["http://127.0.0.1:8000"]'),
        ("images.allow", "data/images", '["data/images"]'),
    ],
)
def test_the_error_for_a_text_in_place_of_a_list_shows_the_list(tmp_path: Path, key: str, value: str, fix: str) -> None:
    message = load_error(write(tmp_path), f"{key}={value}")
    assert message == f"--set {key}: {key}: expected a list, found {value!r}; write {key.partition('.')[2]}: {fix}."


def test_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    assert "engine.timeout: Input should be a finite number, found inf." in load_error(
        write(tmp_path), "engine.timeout=.inf"
    )


def alias_bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    return "\n".join(lines + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)])


@pytest.mark.parametrize(
    ("text", "expected_text"),
    [
        (alias_bomb(30), "env.yaml:1: with its aliases replaced, this has more than 100,000 values; use fewer."),
        ("a: &a [*a]", "env.yaml:1: an alias contains itself."),
        ("a:\n  b: &a {c: [1, *a]}", "env.yaml:2: an alias contains itself."),
        (f"a: {'[' * 5000}{']' * 5000}", "env.yaml:1: lists and keys are nested deeper than 64"),
        ("a: &a0 [x]\n" + "".join(f"b{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 70)), "nested deeper than 64"),
        ("? [a, b]\n: 1", "env.yaml:1: a key is a list or a mapping; expected a word."),
        ("x: y\n" * 60_000, "this file has more than 262,144 bytes"),
        (
            "tasks:\n  seed: 9223372036854775808",
            "env.yaml:2: tasks.seed: '9223372036854775808' does not fit in 64 bits",
        ),
        (f"tasks: {{seed: {'9' * 5000}}}", "env.yaml:1: tasks.seed: '9"),
        (f"tasks: {{seed: {'1:' * 60}1}}", "is too long for a number; write it in quotes if it is a string."),
        ("a: .inf", "env.yaml:1: a: Input should be a finite number, found inf."),
        ('a: "x\\ud800"', "env.yaml:1: a: the text has a lone surrogate"),
        ('"x\\ud800": 1', "env.yaml:1: a key has a lone surrogate"),
        ("a: !!binary aGk=", "env.yaml:1: a: binary data is not supported; write a string."),
        (
            "a: !!float ''",
            "a: '' looks like a number, but is not valid; if it is a string, write it in quotes, without",
        ),
        ("a: 2020-13-45", "env.yaml:1: a: '2020-13-45' looks like a date or a time, but is not valid; if it"),
        ("a: !!timestamp b", "if it is a string, write it in quotes, without !!timestamp before it."),
        ("a: !b c", "env.yaml:1: a: 'c' has the tag !b, which is not supported; remove the tag, or write the value in"),
    ],
    ids=range(18),
)
def test_yaml_that_is_too_large_or_not_supported_is_reported_with_its_line(
    tmp_path: Path, text: str, expected_text: str
) -> None:
    assert expected_text in load_error(write(tmp_path, text))


@pytest.mark.parametrize(
    ("override", "expected_text"),
    [
        ("model.name=&a [*a]", "--set model.name: an alias contains itself."),
        (f"model.name={'[' * 3000}{']' * 3000}", "--set model.name: the value is not YAML, or is nested too deeply"),
        (f"{'a.' * 500}a=1", "expected key=value"),
        (
            "tasks.seed=99999999999999999999",
            "--set tasks.seed: tasks.seed: '99999999999999999999' does not fit in 64 bits",
        ),
        ("x\ud800=1", "expected key=value"),
        ("model.name=\udce9", "--set model.name: the value is not YAML"),
    ],
)
def test_an_override_that_is_too_large_or_not_yaml_is_reported(
    tmp_path: Path, override: str, expected_text: str
) -> None:
    assert expected_text in load_error(write(tmp_path), override)


@pytest.mark.parametrize("key", ["run.directory", "model.path", "images.allow", "tasks.source"])
def test_a_symbolic_link_to_itself_is_reported_with_its_key(tmp_path: Path, key: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    value = "[loop/x]" if key == "images.allow" else "loop/x"
    message = load_error(write(tmp_path), f"{key}={value}")
    assert f"--set {key}: {key}" in message
    assert "this is not a usable path: a symbolic link leads back to itself, found 'loop/x'." in message


def test_a_wrong_source_is_one_problem(tmp_path: Path) -> None:
    path = write(tmp_path, VALID.replace("  count: 2\n", ""))
    assert len(load_error(path, "tasks.source=[1]").splitlines()) == 1


def test_a_file_that_is_not_utf_8_is_reported_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "env.yaml").write_bytes(b"a: 1\nb: \xff\n")
    assert load_error(tmp_path / "env.yaml") == f"{tmp_path}/env.yaml:2: this is not UTF-8. Save the file as UTF-8."


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "env.yaml").write_text(VALID, "utf-8-sig")
    assert load_config(tmp_path / "env.yaml").tasks.count == 2


def test_only_the_first_twenty_problems_are_shown(tmp_path: Path) -> None:
    message = load_error(write(tmp_path, VALID + "".join(f"k{n}: 1\n" for n in range(100))))
    assert len(message.splitlines()) == 21
    assert message.endswith("… and 80 more problems.")


def test_a_variable_in_an_override_is_replaced_as_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N", "7")
    config = load_config(write(tmp_path), ["tasks.count=${N}", "model.name='${N}'"])
    assert (config.tasks.count, config.model.name) == (7, "7")


def test_a_relative_path_of_a_template_belongs_to_the_directory_of_the_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path), ["model.renderer=template", "model.template.file=chat/model.jinja"])
    assert config.model.template == {"file": str(tmp_path / "chat" / "model.jinja")}


def test_the_path_of_a_template_is_a_text(tmp_path: Path) -> None:
    error = load_error(write(tmp_path), "model.template.file=3")
    assert "model.template: expected the path of a chat template as file, found {'file': 3}." in error
    assert error.count("found") == 1


@pytest.mark.parametrize("name", ["file", "style"])
@pytest.mark.parametrize(("value", "found"), [("[a, b]", "['a', 'b']"), ("{a: b}", "{'a': 'b'}")])
def test_an_argument_of_a_template_is_one_value(tmp_path: Path, name: str, value: str, found: str) -> None:
    error = load_error(write(tmp_path), f"model.template.{name}={value}")
    assert error.endswith(f"model.template.{name}: expected a text, a number, true, false or null, found {found}.")
    assert error.count("model.template.") == 2  # the override, and the key


def test_the_digest_contains_the_name_of_a_template_and_not_its_directory(tmp_path: Path) -> None:
    def digest(file: str) -> str:
        return load_config(write(tmp_path), ["model.renderer=template", f"model.template.file={file}"]).digest()

    assert digest("/a/model.jinja") == digest("/b/model.jinja") != digest("/a/other.jinja")


@pytest.mark.parametrize("key", ["tool_parser", "reasoning_parser"])
def test_a_parser_can_be_set_and_is_a_part_of_the_digest(tmp_path: Path, key: str) -> None:
    plain, parsed = (load_config(write(tmp_path), settings) for settings in ([], [f"model.{key}=qwen3"]))
    assert getattr(parsed.model, key) == "qwen3"
    assert plain.digest() != parsed.digest()
    assert key not in plain.to_dict()["model"]
