"""How the tests start agent programs, and whether those that .ci/agents installs are what the table of clients says."""

import asyncio
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.loopback_http import read_requests, serve_on_loopback
from tests.needs.agents import coding_clis
from tests.needs.agents.clients import CLIENTS, TASK, Client
from tests.needs.agents.playing import Command, DeadlinePassed, play

_UNUSED = {"mini-swe-agent": {"datasets", "textual"}}
"""Packages that a client needs only for its benchmarks and its viewer, by the client; they are not installed."""
_PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
_REFUSAL = b'{"type": "error", "error": {"type": "invalid_request_error", "message": "nobody is here"}}'


@dataclass(frozen=True)
class _NoEndpoint:
    base_url: str = "http://127.0.0.1:9/v1"
    model: str = "nobody"
    environ: Mapping[str, str] = field(default_factory=dict)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
async def test_a_client_sends_its_requests_to_the_given_endpoint_in_its_dialect(client: Client, tmp_path: Path) -> None:
    requested: set[tuple[str, str]] = set()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for request in read_requests(reader):
            requested.add((request.path, request.headers["authorization"]))
            head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(_REFUSAL)}"
            writer.write(head.encode() + b"\r\n\r\n" + _REFUSAL)

    async with serve_on_loopback(refuse) as url:
        key = "the-key"
        openai = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": key}
        anthropic = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": key}
        endpoint = _NoEndpoint(f"{url}/v1", "nobody", openai | anthropic)
        await play(client.command(endpoint, tmp_path / "home", TASK), endpoint)
    assert requested == {(_PATHS[client.dialect], f"Bearer {key}")}


@pytest.mark.parametrize("program", [coding_clis.CODEX, coding_clis.OPENCODE])
async def test_a_coding_cli_starts_on_a_machine_without_node(program: Path, tmp_path: Path) -> None:
    command = Command([str(program), "--version"], tmp_path, {"PATH": "", "HOME": str(tmp_path)})
    ended = await play(command, _NoEndpoint())
    assert ended.code == 0, ended.errors
    assert re.search(r"\d+\.\d+\.\d+", ended.output)


async def test_a_program_past_its_deadline_is_killed_with_its_children(tmp_path: Path) -> None:
    script = "import subprocess, sys, time; subprocess.Popen(['sleep', '1000']); time.sleep(1000)"
    command = Command([sys.executable, "-c", script], tmp_path, {})
    with pytest.raises(DeadlinePassed, match="did not end within 2 s"):
        await play(command, _NoEndpoint(), deadline=2)
    assert not _any_process_in(tmp_path)


def test_every_requirement_of_the_clients_is_met(repository: Path) -> None:
    pins = re.findall(r"^([\w.-]+)==", (repository / ".ci" / "agents.txt").read_text(), re.MULTILINE)
    unmet = []
    for package in pins:
        for line in requires(package) or []:
            requirement = Requirement(line)
            used = requirement.name not in _UNUSED.get(package, set())
            if used and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
                try:
                    met = requirement.specifier.contains(version(requirement.name), prereleases=True)
                except PackageNotFoundError:
                    met = False
                if not met:
                    unmet.append(f"{package} needs {requirement}")
    assert not unmet


def _any_process_in(directory: Path) -> bool:
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.readlink() == directory:
                return True
        except OSError:  # the process has ended, or belongs to somebody else
            continue
    return False
