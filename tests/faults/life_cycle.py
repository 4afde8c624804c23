"""An environment that keeps a file until `close`, and whose class keeps another file while its worker plays."""

import asyncio
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import anyio.to_thread
from pydantic import Field

from rollout import Environment, EnvironmentSettings, Model, Retry, Score, Task, TaskSettings


class HoldsAFileSettings(EnvironmentSettings):
    directory: Path = Field(description="Where the files are.")
    shared: str = Field(default="lasts", description="What `shared` does: lasts, cannot_begin or breaks.")


class HoldsAFileTasks(TaskSettings):
    does: tuple[str, ...] = Field(description="What the tasks do, in turns.")


class HoldsAFile(Environment):
    Settings = HoldsAFileSettings
    Tasks = HoldsAFileTasks
    settings: HoldsAFileSettings
    shared_resources: Counter[str]
    held: Path

    @classmethod
    @contextlib.asynccontextmanager
    async def shared(cls, settings: HoldsAFileSettings) -> AsyncIterator[Counter[str]]:
        """Yield a counter of the attempts at each task in this process."""
        if settings.shared == "cannot_begin":
            raise ConnectionRefusedError("no sandboxes")
        with holding(settings.directory / f"shared-{os.getpid()}"):
            async with anyio.create_task_group() as group:
                if settings.shared == "breaks":
                    group.start_soon(breaks)
                yield Counter()
                group.cancel_scope.cancel()
            await asyncio.sleep(0.1)

    def tasks(self, tasks: TaskSettings) -> Iterable[Task]:
        assert isinstance(tasks, HoldsAFileTasks)
        for index in range(tasks.count):
            does = tasks.does[index % len(tasks.does)]
            yield Task(id=f"{index:03d}-{does}", index=index, seed=index, data={"does": does})

    async def run(self, task: Task, model: Model) -> Any:
        self.shared_resources[task.id] += 1
        attempt = self.shared_resources[task.id]
        self.held = self.settings.directory / f"held-{os.getpid()}-{task.id}-{attempt}"
        self.held.touch(exist_ok=False)
        (self.settings.directory / "begun").open("a").write(f"{self.held.name}\n")
        self.closed = asyncio.Event()
        await model.chat([{"role": "user", "content": f"Heads or tails? {task.id}"}])
        return await getattr(self, task.data["does"])(attempt)

    async def close(self) -> None:
        await asyncio.sleep(0.01)
        self.held.unlink()
        self.closed.set()

    async def scores(self, _: int) -> Score:
        return Score(1.0)

    async def plays_long(self, _: int) -> Score:
        await asyncio.sleep(0.3)
        return Score(1.0)

    async def raises(self, _: int) -> Score:
        raise ValueError("a bug")

    async def asks_again_once(self, attempt: int) -> Score:
        if attempt == 1:
            raise Retry("a flaky judge")
        return Score(1.0)

    async def asks_again(self, attempt: int) -> Score:
        raise Retry(f"flaky judge {attempt}")

    async def hangs(self, _: int) -> None:
        await asyncio.Event().wait()

    async def hangs_in_a_thread(self, _: int) -> None:
        await anyio.to_thread.run_sync(time.sleep, 3600)

    async def stays_until_closed(self, _: int) -> None:
        while not self.closed.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.closed.wait()

    async def holds(self, _: int) -> None:
        time.sleep(3600)  # noqa: ASYNC251 - that is the point

    async def exits(self, _: int) -> None:
        sys.exit(3)

    async def cancels_its_task(self, _: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()


@contextlib.contextmanager
def holding(path: Path) -> Any:
    path.touch(exist_ok=False)
    try:
        yield
    finally:
        path.unlink()


async def breaks() -> None:
    await asyncio.sleep(1)
    raise ConnectionResetError("the pool died")
