"""An environment whose rollouts misbehave in many ways, next to others that behave well."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Iterable
from typing import Any

import anyio.to_thread
from pydantic import Field

from rollout import Environment, EnvironmentSettings, Model, Score, Task, TaskSettings


class MisbehavingSettings(EnvironmentSettings):
    marker: str = Field(default="marker", description="An argument of each process that `leaves_a_process` starts.")
    block: float = Field(default=5.0, description="How many seconds `blocks` computes.")


class MisbehavingTasks(TaskSettings):
    does: tuple[str, ...] = Field(default=("behaves",), description="What the tasks do, in turns.")


class Misbehaving(Environment):
    Settings = MisbehavingSettings
    Tasks = MisbehavingTasks
    settings: MisbehavingSettings

    def tasks(self, tasks: TaskSettings) -> Iterable[Task]:
        assert isinstance(tasks, MisbehavingTasks)
        for index in range(tasks.count):
            does = tasks.does[index % len(tasks.does)]
            yield Task(id=f"{index:03d}-{does}", index=index, seed=index, data={"does": does})

    async def run(self, task: Task, model: Model) -> Any:
        await model.chat([{"role": "user", "content": f"Heads or tails? {task.id}"}])
        return await getattr(self, task.data["does"])(model)

    async def behaves(self, model: Model) -> Score:
        await asyncio.sleep(0.1)
        await model.chat([{"role": "user", "content": "Again?"}])
        return Score(1.0)

    async def raises(self, _: Model) -> Score:
        raise ValueError("a bug of its own")

    async def hangs(self, _: Model) -> None:
        await asyncio.Event().wait()

    async def hangs_in_a_thread(self, _: Model) -> None:
        await anyio.to_thread.run_sync(time.sleep, 3600)

    async def will_not_end(self, _: Model) -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    async def holds(self, _: Model) -> None:
        time.sleep(3600)  # noqa: ASYNC251 - that is the point

    async def blocks(self, model: Model) -> Score:
        until = time.monotonic() + self.settings.block
        while time.monotonic() < until:
            sum(range(1000))
        return await self.behaves(model)

    async def answers_nonsense(self, _: Model) -> str:
        return "a score, honestly"

    async def answers_nan(self, _: Model) -> Score:
        return Score(float("nan"))

    async def raises_half_a_pair(self, _: Model) -> Score:
        raise ValueError("cut \ud83d")

    async def names_half_a_pair(self, _: Model) -> Score:
        return Score(1.0, {"\ud83d": 1.0})

    async def answers_a_huge_number(self, _: Model) -> Score:
        return Score(10**400)

    async def leaves_as_a_generator(self, _: Model) -> Score:
        raise GeneratorExit

    async def cancels_its_task(self, _: Model) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async def sends_a_graph(self, model: Model) -> None:
        part: dict[str, Any] = {"type": "text", "text": "a leaf"}
        for _level in range(14):
            part = {"type": "tool_result", "content": [part] * 12}
        await model.chat([{"role": "user", "content": [part]}])

    async def holds_our_code(self, model: Model) -> None:
        class Slow(dict[str, Any]):
            def get(self, key: str, default: Any = None) -> Any:
                time.sleep(3600)

        await model.chat([{"role": "user", "content": [Slow()]}])

    async def holds_a_queue(self, _: Model) -> None:
        """Hold the event loop in code that looks like our queue."""
        namespace: dict[str, Any] = {"__name__": "transports.files"}
        exec("import time\ndef hold(): time.sleep(3600)\n", namespace)
        namespace["hold"]()

    async def prints(self, _: Model) -> Score:
        for _megabyte in range(1024):
            print("x" * (1 << 20))
        return Score(1.0)

    async def writes(self, model: Model) -> Score:
        """Write to the file descriptor, which Python does not count."""
        for _megabyte in range(64):
            os.write(1, b"x" * (1 << 20))
        return await self.behaves(model)

    async def forks(self, _: Model) -> Score:
        os.fork()
        return Score(1.0)

    async def exits(self, _: Model) -> None:
        sys.exit(3)

    async def exits_in_a_task(self, model: Model) -> None:
        await asyncio.gather(self.exits(model), asyncio.sleep(1))

    async def cancels(self, _: Model) -> None:
        raise asyncio.CancelledError

    async def dies(self, _: Model) -> None:
        os._exit(7)

    async def leaves_a_process(self, model: Model) -> Score:
        command = [sys.executable, "-c", "import time; time.sleep(3600)", self.settings.marker]
        await asyncio.create_subprocess_exec(*command)
        return await self.behaves(model)

    async def leaves_a_task(self, model: Model) -> Score:
        async def goes_on() -> None:
            while True:
                await self.behaves(model)

        self.left = asyncio.ensure_future(goes_on())
        return await self.behaves(model)
