"""A configuration neither shows passwords and other secrets nor writes them to a file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field, model_validator

from rollout.config.load import load_config
from rollout.config.problems import show_override, show_written
from rollout.environments.base import EnvironmentSettings, TaskSettings
from rollout.environments.color_codeword import ColorCodeword
from rollout.errors import RolloutError
from rollout.records.task import Task
from rollout.rundir.directory import RunDirectory
from rollout.tasks.sources import iter_tasks
from rollout.trainer import partitions_of
from tests.unit.cli.in_process import run_cli
from transports import QueueError, UnknownTransport, open_queue
from transports.redaction import hide_passwords
from transports.urls import QueueOptions, has_plain_password, parse_queue_url, split_url, without_password

PASSWORD = "hunter2"
URLS = [
    "redis://u:hunter2@h",
    "redis://:hunter2@h:6379/0",
    "redis://u:hunter2@h:port",
    "redis://u:hunter2@h:99999",
    "redis://u:hunter2",
    "redis://u:hunter2@",
    "redis://u:hun/hunter2@h",
    "redis://u:hun?x=hunter2@h",
    "redis://u:hun#hunter2@h",
    "redis://u:hun@hunter2@h",
    "redis://u:hun hunter2@h",
    "redis://u:12/hunter2@h",
    "redis://u:12?lease_time=hunter2@h",
    "redis://u:12?hunter2@h",
    "redis://[u:hunter2@h",
    "redis://u:hunter2]@h",
    "redis://u:hunter2@[h",
    "redis://u:hunter2@[::zz]:1/0",
    "redis://u:%zzhunter2@h:port",
    "redis://u:hunter2\u2100@h",
    "redis:/u:hunter2@h",
    "redis:u:hunter2@h",
    "u:hunter2@h:6379/0",
    "//u:hunter2@h",
    "redis://u:hunter2@h/0?nonsense",
    "redis://u:hunter2@h/0?lease_tim=1",
    "redis://h/0?password=hunter2",
    "zmq://u:hunter2@h",
    "zmq://u:hunter2@h:5555/path",
    "reddis://u:hunter2@h",
    "http://u:hunter2@h:8000",
    "http://u:hun/hunter2@h:8000",
    "http://h:8000?token=hunter2",
    "file://u:hunter2@h/x",
    "memory://u:hunter2@?partitions=0",
    "http://hunter2@h/",
    "redis://hunter2@h?x=1",
    "redis://u%3Ahunter2@h",
    "redis://u@hunter2@h",
    "[redis://u:hunter2@h, redis://v:hunter2@g]",
]


def config_text(**sections: str) -> str:
    return "environment: {class: 'rollout.environments.color_codeword:ColorCodeword'}\n" + "".join(
        f"{name}: {text}\n" for name, text in {"model": "{name: m, path: m, renderer: qwen3-vl}", **sections}.items()
    )


WRONG = """
environment: {class: URL, image_size: URL}
tasks: {count: URL}
model: {template: URL}
engine: {urls: URL, api_key_env: URL, sampling: {stop_token_ids: URL, temperature: [URL], stop: {a: URL}}}
images: URL
queue: {url: URL, nonsense: URL}
policy: {batch: URL}
run: {name: URL}
URL: 1
"""
"""A value of a wrong type in every place that has its own error text."""


def load_with(tmp_path: Path, *overrides: str) -> Any:
    path = tmp_path / "env.yaml"
    path.write_text(config_text())
    return load_config(path, overrides)


def load_wrong(url: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(WRONG.replace("URL", json.dumps(url)))
    load_config(path)


def iter_rows(source: str) -> list[Task]:
    return list(iter_tasks(ColorCodeword(EnvironmentSettings()), TaskSettings(source=source, count=1)))


def refusal(place: Callable[[str, Path], object], url: str, tmp_path: Path) -> str:
    try:
        place(url, tmp_path)
    except (RolloutError, QueueError) as error:
        return f"{error} {error.__cause__}"
    return ""


PLACES: dict[str, Callable[[str, Path], object]] = {
    "split": lambda url, _: split_url(url),
    "strip": lambda url, _: without_password(url),
    "options": lambda url, _: parse_queue_url(url, QueueOptions),
    "ranks": lambda url, _: partitions_of(url, 0, 4),
    "source": lambda url, _: iter_rows(f"{url}.csv"),
    "override": lambda url, path: load_with(path, url),
    "wrong values": load_wrong,
}


@pytest.mark.parametrize("place", PLACES)
def test_no_error_shows_the_password_of_a_url(place: str, tmp_path: Path) -> None:
    refusals = {url: refusal(PLACES[place], url, tmp_path) for url in URLS}
    assert any(refusals.values())
    assert [url for url, text in refusals.items() if PASSWORD in text] == []


@pytest.mark.parametrize("url", URLS)
def test_a_shown_url_hides_its_password(url: str) -> None:
    assert PASSWORD not in hide_passwords(url)
    assert PASSWORD not in show_written({"a": [url]})
    assert PASSWORD not in show_override(f"queue.url={url}")


@pytest.mark.parametrize(
    "text",
    [
        "redis://${USER}@h/0?stream=x",
        "redis://u:***@h",
        "http://h/@me",
        "hf://name@revision",
        "redis://[::1]:6379/0",
        "redis://u:${PASSWORD}@${HOST}:${PORT}/0",
        "file:///data/10:00@night/run?retain=true",
        "file://{run_dir}/tasks/{environment}",
        "hf://owner/name@revision?split=train",
        "package.module:Class",
        "me@example.org",
    ],
)
def test_a_text_without_a_password_is_shown_unchanged(text: str) -> None:
    assert hide_passwords(text) == text


def test_an_unknown_scheme_is_reported_without_the_password() -> None:
    with pytest.raises(UnknownTransport) as caught:
        open_queue("reddis://u:hunter2@h")
    assert str(caught.value).startswith("reddis://u:***@h: unknown scheme 'reddis://'")


@pytest.mark.parametrize(
    ("text", "is_reported"),
    [
        ("redis://u:hunter2@h", True),
        ("redis://h/0?password=hunter2", True),
        ("redis://h/0?password=${PASSWORD}", False),
        ("redis://u:${PASSWORD}@h", False),
        ("redis://me@h", False),
        ("write password=hunter2", False),
    ],
)
def test_a_plain_password_in_a_url_is_found(text: str, is_reported: bool) -> None:
    assert has_plain_password(text) is is_reported


@pytest.mark.parametrize(
    ("url", "expected_url"),
    [
        ("redis://u:hunter2@h/0?stream=x", "redis://u@h/0?stream=x"),
        ("redis://u:${P}@h/0?stream=x&token=hunter2", "redis://u:${P}@h/0?stream=x"),
        ("redis://me@h/0", "redis://me@h/0"),
    ],
)
def test_a_url_in_a_file_keeps_everything_but_its_secrets(url: str, expected_url: str) -> None:
    assert without_password(url) == expected_url


def test_the_command_line_hides_the_password_of_a_url() -> None:
    for url in URLS[2::12]:
        result = run_cli("queue", "stats", url, "--json")
        assert result.returncode in (1, 2)
        assert PASSWORD not in result.stdout + result.stderr, url


def test_the_value_of_a_key_with_the_name_of_a_secret_is_hidden(tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match=r"engine\.api_key_env: Input should be a valid string, found \['\*\*\*'\]"):
        load_with(tmp_path, "engine.api_key_env=[hunter2]")


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("tasks.count=${SECRET}", "found '${SECRET}'"),
        ("model.template={a: ['${SECRET}']}", "found ['${SECRET}']"),
        ("engine.urls=${SECRET}", 'write urls: ["${SECRET}"]'),
        ("queue.url='redis://[${SECRET}'", "found 'redis://[${SECRET}'"),
        ("engine.sampling.seed=!!int ${SECRET}", "found '${SECRET}'"),
        ("environment.class=${SECRET}", "found '${SECRET}'"),
    ],
)
def test_an_error_shows_the_name_of_a_variable_and_not_its_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, found: str
) -> None:
    monkeypatch.setenv("SECRET", PASSWORD)
    with pytest.raises(RolloutError) as caught:
        load_with(tmp_path, override)
    assert PASSWORD not in str(caught.value)
    assert found in str(caught.value)


def test_a_saved_configuration_is_loaded_with_the_same_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COUNT": "3", "PLACE": "models/tiny", "NAME": "7", "T": "0"}.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "env.yaml"
    path.write_text(
        config_text(
            model="{name: '${NAME}', path: '${PLACE}', renderer: qwen3-vl}",
            tasks="\n  count: ${COUNT}\n  seed: ${SEED:-5}",
            engine="\n  sampling:\n    temperature: ${T}\n    stop: ['${NAME}', end]",
        )
    )
    (tmp_path / "run").mkdir()
    loaded = load_config(path)
    RunDirectory(tmp_path / "run").save_config(loaded, "config.yaml")
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert all(reference in text for reference in ("name: '${NAME}'", "count: ${COUNT}", "seed: ${SEED:-5}"))
    again = load_config(tmp_path / "run" / "config.yaml")
    assert again.to_dict() == loaded.to_dict()
    assert again.model.path == tmp_path / "models" / "tiny"


class MovingSettings(EnvironmentSettings):
    api: str = Field(alias="apiKey")
    keys: tuple[str, ...] = ()
    header: str = ""
    mode: str = "true"

    @model_validator(mode="before")
    @classmethod
    def derive(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "header": f"Bearer {values['apiKey']}", "keys": tuple(sorted(values["keys"]))}


class MovingEnvironment(ColorCodeword):
    Settings = MovingSettings


@pytest.fixture
def moving_config(tmp_path: Path) -> Path:
    path = tmp_path / "env.yaml"
    path.write_text(
        f"environment: {{class: '{__name__}:MovingEnvironment', apiKey: '${{S}}', keys: [zz, '${{T}}']}}\n"
        "model: {name: m, path: m, renderer: qwen3-vl}\n"
    )
    return path


def test_a_secret_that_a_validator_moves_or_copies_is_saved_as_its_variable(
    moving_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"S": "s3cr3tvalue", "T": "aaa-token"}.items():
        monkeypatch.setenv(name, value)
    loaded = load_config(moving_config)
    RunDirectory(tmp_path).save_config(loaded, "config.yaml")
    environment = yaml.safe_load((tmp_path / "config.yaml").read_text())["environment"]
    assert environment["apiKey"] == "${S}"
    assert environment["header"] == "Bearer ${S}"
    assert environment["keys"] == ["${T}", "zz"]
    assert load_config(tmp_path / "config.yaml").to_dict() == loaded.to_dict()


def test_a_short_value_of_a_variable_is_replaced_only_in_its_own_key(
    moving_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"S": "true", "T": "Be"}.items():
        monkeypatch.setenv(name, value)
    environment = load_config(moving_config).as_written()["environment"]
    assert (environment["apiKey"], environment["keys"]) == ("${S}", ["${T}", "zz"])
    assert (environment["header"], environment["mode"]) == ("Bearer true", "true")
