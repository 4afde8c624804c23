"""Starts an agent program against an endpoint, waits for its end up to a deadline, and returns what it printed.

The program gets a small environment of its own: nothing of the user's settings, proxies and keys reaches it.
"""

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.conftest import ROOT

DEADLINE = 120.0
"""Seconds for a program to end; a coding CLI needs about five on an idle machine."""


class Endpoint(Protocol):
    """What a program is told of the gateway."""

    @property
    def base_url(self) -> str:
        """The URL for OpenAI's dialects; it ends in `/v1`."""

    @property
    def model(self) -> str:
        """The name of the model."""

    @property
    def environ(self) -> Mapping[str, str]:
        """The variables that the SDKs read: URLs and keys."""


@dataclass(frozen=True)
class Command:
    """How to start a program.

    Attributes:
        arguments: the program and its arguments.
        directory: its working directory.
        environ: variables that it gets beside those of the endpoint.
        stdin: the text for its standard input.
    """

    arguments: list[str]
    directory: Path
    environ: Mapping[str, str]
    stdin: str = ""


@dataclass(frozen=True)
class Ended:
    """A program that has ended.

    Attributes:
        code: its exit code.
        output: what it printed, without line breaks at the end.
        errors: what it wrote to standard error.
    """

    code: int
    output: str
    errors: str


class DeadlinePassed(Exception):
    """The program did not end in time."""


async def play(command: Command, endpoint: Endpoint, deadline: float = DEADLINE) -> Ended:
    """Run a program to its end. When this stops early, the program and all that it started are killed.

    Args:
        command: how to start it.
        endpoint: where it plays.
        deadline: for how many seconds it may run.

    Raises:
        DeadlinePassed: it did not end in time.
    """
    process = await asyncio.create_subprocess_exec(
        *command.arguments,
        cwd=command.directory,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **endpoint.environ, **command.environ},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(command.stdin.encode()), deadline)
    except TimeoutError:
        raise DeadlinePassed(f"{command.arguments[:4]} did not end within {deadline:g} s") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    assert process.returncode is not None
    return Ended(process.returncode, output.decode().rstrip("\n"), errors.decode())
