"""No log, record or error contains the key of an endpoint, even if the program puts it everywhere."""

import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog

from rollout.api_keys import hide_keys, hide_keys_in_json, new_key
from rollout.gateway.addresses import EndpointAddresses
from rollout.log import log_to_json_file
from rollout.testing import embedded_policy
from rollout.worker.failures import describe_failure
from tests.open_endpoints import PATHS, TIMEOUT, open_endpoint
from tests.unit.cli.in_process import run_cli

LEAKING_ENVIRONMENT = """
import os, sys, logging
from pathlib import Path
import httpx, structlog
from rollout import Environment, Score

def bodies(key, escaped):
    call = {"id": f"call-{key}", "type": "function", "function": {"name": key, "arguments": '{"k": "%s"}' % key}}
    chat = [
        {"role": "system", "content": f"export OPENAI_API_KEY={key}"},
        {"role": "user", "content": [{"type": "text", "text": f"file {key}.txt at http://a/?key={key}"}]},
        {"role": "assistant", "content": key, "reasoning_content": key, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": f"call-{key}", "content": f"ESCAPED {key}"},
    ]
    tool = {"type": "function", "function": {"name": f"f-{key}", "description": key, "parameters": {key: key}}}
    yield "/v1/chat/completions", {"model": key, "messages": chat, "tools": [tool], "max_tokens": 2}
    yield "/v1/responses", {"input": [
        {"role": "user", "content": key},
        {"type": "function_call", "call_id": key, "name": key, "arguments": '{"%s": 1}' % key},
        {"type": "function_call_output", "call_id": key, "output": key},
    ], "max_output_tokens": 2}
    yield "/v1/messages", {"messages": [
        {"role": "user", "content": key},
        {"role": "assistant", "content": [{"type": "tool_use", "id": key, "name": key, "input": {"k": [key]}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": key, "content": key}]},
    ], "max_tokens": 2}
    image = {"type": "image_url", "image_url": {"url": f"file:///{key}.png"}}
    yield "/v1/chat/completions", {"messages": [{"role": "user", "content": [image]}]}
    yield "/v1/chat/completions", {"messages": [{"role": key, "content": key}]}
    yield f"/v1/{key}", {}

class Leaking(Environment):
    async def run(self, task, model):
        async with model.endpoint() as endpoint:
            key = endpoint.key
            Path(os.environ["KEY_FILE"]).write_text(key[::-1])
            escaped = "".join(f"\\\\u{ord(letter):04x}" for letter in key)
            async with httpx.AsyncClient(base_url=endpoint.anthropic_base_url, headers={"x-api-key": key}) as client:
                for path, body in bodies(key, escaped):
                    text = __import__("json").dumps(body).replace("ESCAPED", escaped)
                    answer = await client.post(path, content=text, timeout=60)
                    assert key not in answer.text, answer.text
                structlog.get_logger().info("started", environ=dict(endpoint.environ), address=endpoint.keyed_base_url)
                structlog.get_logger().warning(f"{endpoint!r} {key}")
                lost = await client.get(f"{endpoint.keyed_base_url}/nothing")
                lost.raise_for_status()
        return Score(1.0)
"""


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


@pytest.mark.parametrize("command", ["run", "launch"])
def test_nothing_that_a_run_writes_contains_the_key(tmp_path: Path, command: str) -> None:
    module = f"leaking_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(LEAKING_ENVIRONMENT)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"environment: {{class: '{module}:Leaking'}}\ntasks: {{count: 1}}\nrun: {{directory: runs}}\n"
        "model: {name: tiny-qwen3-vl, path: builtin:tiny, renderer: qwen3-vl}\n"
    )
    key_file = tmp_path.with_name(f"{tmp_path.name}-key")
    with variable("KEY_FILE", str(key_file)):
        result = run_cli(command, str(config))
    key = key_file.read_text()[::-1]
    assert "HTTPStatusError" in result.stdout + result.stderr, result.stdout + result.stderr
    assert key not in result.stdout + result.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("a-key-of-the-gateway" in path.read_text(errors="replace") for path in written)
    assert [path for path in written if key.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("dialect", PATHS)
async def test_no_record_contains_a_key_that_a_program_sends(tmp_path: Path, dialect: str) -> None:
    namespace: dict[str, object] = {}
    exec(LEAKING_ENVIRONMENT, namespace)
    make: Callable[[str, str], Iterator[tuple[str, object]]] = namespace["bodies"]  # type: ignore[assignment]
    async with embedded_policy(tmp_path) as policy, open_endpoint(policy) as opened:
        key = opened.endpoint.key
        escaped = "".join(f"\\u{ord(letter):04x}" for letter in key)
        for path, body in make(key, escaped):
            if path == PATHS[dialect]:
                text = json.dumps(body).replace("ESCAPED", escaped)
                await opened.client.post(path, content=text, timeout=TIMEOUT)
        transcript = repr(opened.endpoint.transcript)
    assert opened.played is not None
    assert len(opened.played.trajectory.steps) == 1
    assert "a-key-of-the-gateway" in transcript
    assert key not in transcript
    assert key.encode() not in pickle.dumps(opened.played.trajectory)
    assert key not in repr(opened.endpoint)


def test_an_address_does_not_show_its_key() -> None:
    addresses = EndpointAddresses("127.0.0.1:1", "tiny", new_key())
    assert addresses.key not in repr(addresses)
    assert addresses.key in addresses.keyed_base_url


def test_the_texts_of_a_failure_have_no_key() -> None:
    key = new_key()
    try:
        raise ValueError(f"{'x' * 9990} {key} of {key}") from KeyError(key)
    except ValueError as error:
        failure = describe_failure(error)
    assert "sk-rollout" not in f"{failure.as_record()} {failure.traceback} {failure.full_traceback}"


def test_a_line_of_the_log_has_no_key(tmp_path: Path) -> None:
    key = new_key()
    with log_to_json_file(tmp_path / "log.jsonl"):
        structlog.get_logger().info(f"starts with {key}", environ={"OPENAI_API_KEY": key}, **{key: [key]})
    assert key not in (tmp_path / "log.jsonl").read_text()
    assert json.loads((tmp_path / "log.jsonl").read_text())["event"] == "starts with a-key-of-the-gateway"


def test_a_key_is_found_in_any_spelling() -> None:
    key = new_key()
    assert hide_keys(f"at /key/{key}/v1 and {key[:-5]}…") == "at /key/a-key-of-the-gateway/v1 and a-key-of-the-gateway…"
    one_escaped = key.replace("-", "\\u002D")
    twice_escaped = "".join(f"\\\\u{ord(letter):04x}" for letter in key)
    for spelling in (key, one_escaped, twice_escaped):
        assert json.loads(hide_keys_in_json(f'["{spelling}"]'.encode())) == ["a-key-of-the-gateway"]


@pytest.mark.parametrize("text", ["sk-another", "caf\\u00e9 \\u0073 \\u003c", "sk-rollout-", "\\\\u0073k-"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert hide_keys_in_json(text.encode()) == text.encode()
    assert hide_keys(text) == text
