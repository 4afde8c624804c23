"""Environments for the tests of `rollout doctor --agent`."""

import asyncio
import os
import sys
from pathlib import Path

from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.environments.endpoint import EndpointSocket

PROGRAM = Path(__file__).with_name("small_agent.py")


class HabitSettings(EnvironmentSettings):
    """What the program does."""

    habits: tuple[str, ...] = ()
    socket: Path | None = None


class SmallAgent(Environment):
    """Runs the small agent in a process of its own."""

    Settings = HabitSettings
    settings: HabitSettings

    async def run(self, task: Task, model: Model) -> Score:
        """Play the program to its end."""
        async with model.endpoint() as endpoint:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(PROGRAM),
                *self.settings.habits,
                env={"PATH": os.environ["PATH"], **endpoint.environ},
            )
            try:
                code = await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        return Score(0.0, metrics={"exit_code": code})


class SometimesTitle(SmallAgent):
    """Asks for a title in every second rollout."""

    played = 0

    async def run(self, task: Task, model: Model) -> Score:
        """Play the program, with or without a title."""
        if SometimesTitle.played % 2 == 0:
            self.settings = self.settings.model_copy(update={"habits": ("title",)})
        SometimesTitle.played += 1
        return await super().run(task, model)


class WrongScore(SmallAgent):
    """Cannot score what the program did."""

    async def run(self, task: Task, model: Model) -> Score:
        """Play the program, and fail."""
        await super().run(task, model)
        raise ValueError("no such score")


class NoEndpoint(Environment):
    """Fails before it opens an endpoint."""

    async def run(self, task: Task, model: Model) -> Score:
        """Fail."""
        raise ValueError("no such file; none at all. Really none")


class SocketAgent(Environment):
    """Asks once through a unix socket of its own."""

    Settings = HabitSettings
    settings: HabitSettings

    async def run(self, task: Task, model: Model) -> Score:
        """Ask once."""
        import httpx

        assert self.settings.socket is not None
        socket = EndpointSocket(self.settings.socket, "127.0.0.1:4321")
        async with model.endpoint(socket=socket) as endpoint:
            assert endpoint.base_url == "http://127.0.0.1:4321/v1"
            transport = httpx.AsyncHTTPTransport(uds=str(self.settings.socket))
            headers = {"Authorization": f"Bearer {endpoint.key}"}
            async with httpx.AsyncClient(transport=transport, headers=headers) as client:
                body = {"model": endpoint.model, "messages": [{"role": "user", "content": "Hi"}]}
                response = await client.post(f"{endpoint.base_url}/chat/completions", json=body)
        return Score(0.0, metrics={"status": response.status_code})


class ChatOnly(Environment):
    """Opens no endpoint."""

    async def run(self, task: Task, model: Model) -> Score:
        """Ask once, without a program."""
        await model.chat([{"role": "user", "content": "Hi"}])
        return Score(1.0)
