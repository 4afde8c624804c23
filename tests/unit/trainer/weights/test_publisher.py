"""Publishing versions to embedded engines: pushes, announcements, and repairs of engines that missed a push."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from rollout.config.load import load_config
from rollout.engine.weight_updates import EngineState, update_weights
from rollout.errors import ConfigurationError
from rollout.records.progress import ProgressFollower, ProgressPublisher, TrainerProgress
from rollout.serving.embedded import EmbeddedServer, EmbeddedSettings
from rollout.trainer import (
    AsyncPolicyPublisher,
    Consumption,
    PolicyPublisher,
    PublisherSettings,
    PushFailed,
    WeightsError,
    WeightsHeld,
)
from rollout.trainer.weights import publisher as module
from rollout.trainer.weights.from_config import publisher_settings
from transports import QueueError, open_queue
from transports.codec import encode

Save = Callable[[Path], None]


@pytest.fixture
def save(write_weights: Callable[..., None]) -> Save:
    return lambda directory: write_weights(directory, {"embed.weight": (4, 2)})


class Engines:
    """Embedded engines that a test can stop, and start again at the same port."""

    def __init__(self) -> None:
        self._servers: list[EmbeddedServer] = []
        self.urls: tuple[str, ...] = tuple(self._start(0) for _ in range(2))

    def _start(self, port: int) -> str:
        self._servers.append(EmbeddedServer(EmbeddedSettings(weight_version="default"), port=port))
        return self._servers[-1].start()

    def stop(self, index: int) -> None:
        self._servers[index].stop()

    def restart(self, index: int) -> None:
        port = urlsplit(self.urls[index]).port
        assert port is not None
        self._start(port)

    def stop_all(self) -> None:
        for server in self._servers:
            server.stop()


@pytest.fixture
def engines() -> Iterator[Engines]:
    with ExitStack() as stack:
        engines = Engines()
        stack.callback(engines.stop_all)
        yield engines


@pytest.fixture
def settings(engines: Engines, tmp_path: Path) -> PublisherSettings:
    return PublisherSettings(engines.urls, tmp_path / "policy", {"codeword": f"memory://{tmp_path.name}"}, timeout=60)


@pytest.fixture
async def follower(settings: PublisherSettings) -> AsyncIterator[ProgressFollower]:
    async with open_queue(settings.controls["codeword"]) as queue:
        yield ProgressFollower(queue)


@pytest.mark.parametrize("version", [float("inf"), float("nan"), "9" * 5000, -1, None, [1]])
async def test_progress_without_a_valid_version_is_a_dead_letter(version: Any) -> None:
    async with open_queue("memory://progress") as queue:
        await queue.put(encode({"version": version, "consumed": 0, "discarded": 0}), key="progress")
        follower = ProgressFollower(queue)
        assert not await follower.poll(timeout=5)
        assert follower.latest == TrainerProgress()
        assert (await queue.stats()).dead_letters == 1


async def test_a_version_reaches_every_engine_and_is_announced(
    settings: PublisherSettings, follower: ProgressFollower, save: Save
) -> None:
    async with AsyncPolicyPublisher(settings) as publisher:
        for version in (3, 4, 2):  # a trainer may go back to a checkpoint
            pushed = await publisher.publish(version, save, {"codeword": Consumption(64 * version, discarded=1)})
            assert (pushed.version, pushed.engines, dict(pushed.behind)) == (version, settings.engines, {})
            assert await publisher.states() == dict.fromkeys(settings.engines, EngineState(str(version), paused=False))
            assert await follower.poll(timeout=20)
            assert follower.latest == TrainerProgress(version, 64 * version, 1, pushed=True)
            assert publisher.version == version


async def test_the_directories_of_a_publisher_may_be_strings(settings: PublisherSettings, save: Save) -> None:
    save(Path(settings.weights).parent)
    as_texts = replace(settings, weights=str(settings.weights), reference=str(Path(settings.weights).parent))
    async with AsyncPolicyPublisher(as_texts) as publisher:
        assert (await publisher.publish(1, save)).engines == settings.engines


def test_a_trainer_without_an_event_loop_publishes_from_its_own_thread(settings: PublisherSettings, save: Save) -> None:
    with PolicyPublisher(settings) as publisher:
        assert publisher.publish(7, save).engines == settings.engines
        assert publisher.version == 7
        assert publisher.repair().behind == {}
        assert set(publisher.states().values()) == {EngineState("7", paused=False)}


def test_an_error_of_the_trainer_is_raised_unchanged(settings: PublisherSettings, save: Save) -> None:
    def train() -> None:
        with PolicyPublisher(settings) as publisher:
            publisher.publish(1, save)
            raise ZeroDivisionError

    for _ in range(2):  # the directory is free again after an error
        with pytest.raises(ZeroDivisionError):
            train()


async def test_an_engine_that_missed_a_push_is_behind_until_it_is_repaired(
    settings: PublisherSettings, engines: Engines, follower: ProgressFollower, save: Save
) -> None:
    dead, alive = engines.urls
    async with AsyncPolicyPublisher(settings) as publisher:
        await publisher.publish(1, save)
        engines.stop(0)
        pushed = await publisher.publish(2, save)
        assert pushed.engines == (alive,)
        assert dead in pushed.behind[dead]
        engines.restart(0)
        assert (await publisher.states())[dead] == EngineState("default", paused=False)
        assert (await publisher.repair()).engines == engines.urls
        assert set((await publisher.states()).values()) == {EngineState("2", paused=False)}
    announced_versions = [follower.latest.version for _ in range(2) if await follower.poll(timeout=20)]
    assert announced_versions == [1, 2]
    assert not await follower.poll(timeout=0.05)


async def test_an_engine_that_comes_back_is_repaired_while_the_trainer_waits(
    settings: PublisherSettings, engines: Engines, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REPAIR_INTERVALS", (0.02, 0.04))
    async with AsyncPolicyPublisher(settings) as publisher, asyncio.timeout(60):
        await publisher.publish(1, save)
        engines.stop(0)
        engines.restart(0)
        while True:
            if (await publisher.states())[engines.urls[0]] == EngineState("1", paused=False):
                break
            await asyncio.sleep(0.02)


async def test_a_failed_announcement_is_repeated(
    settings: PublisherSettings,
    engines: Engines,
    follower: ProgressFollower,
    save: Save,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_REPAIR_INTERVALS", (0.02, 0.04))
    announce, failures = ProgressPublisher.publish, iter((True, True))

    async def publish_or_fail(self: ProgressPublisher, progress: TrainerProgress) -> None:
        if progress.version == 2 and next(failures, False):
            raise QueueError("the queue is unreachable")
        await announce(self, progress)

    monkeypatch.setattr(ProgressPublisher, "publish", publish_or_fail)
    async with AsyncPolicyPublisher(settings) as publisher, asyncio.timeout(60):
        await publisher.publish(1, save)
        engines.stop_all()
        with pytest.raises(PushFailed):
            await publisher.publish(2, save)
        engines.restart(0)
        while follower.latest.version != 2:
            await follower.poll(timeout=1)


async def test_a_push_resumes_an_engine_that_a_dead_publisher_left_paused(
    settings: PublisherSettings, save: Save
) -> None:
    async with httpx.AsyncClient() as client:
        for url in settings.engines:
            await client.post(f"{url}/pause?mode=keep")
    async with AsyncPolicyPublisher(settings) as publisher:
        assert set((await publisher.states()).values()) == {EngineState("default", paused=True)}
        await publisher.publish(1, save)
        assert set((await publisher.states()).values()) == {EngineState("1", paused=False)}


async def test_without_any_engine_nothing_is_announced(
    settings: PublisherSettings, engines: Engines, follower: ProgressFollower, save: Save
) -> None:
    engines.stop_all()
    async with AsyncPolicyPublisher(settings) as publisher:
        with pytest.raises(PushFailed, match="no engine has version 1"):
            await publisher.publish(1, save)
        assert publisher.version is None
        assert not await follower.poll(timeout=0.05)
        engines.restart(1)
        assert (await publisher.repair()).engines == (engines.urls[1],)
        assert await follower.poll(timeout=20)
        assert follower.latest == TrainerProgress(1, pushed=True)


async def test_weights_that_no_engine_can_load_are_not_pushed(settings: PublisherSettings, save: Save) -> None:
    async with AsyncPolicyPublisher(settings) as publisher:
        await publisher.publish(1, save)
        with pytest.raises(WeightsError, match="cannot be read"):
            await publisher.publish(2, lambda directory: (directory / "model.safetensors").write_bytes(b"x"))
        assert set((await publisher.states()).values()) == {EngineState("1", paused=False)}
        assert publisher.version == 1


async def test_a_version_that_becomes_unreadable_during_the_push_is_a_failed_push(
    settings: PublisherSettings, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def damage_then_update(*arguments: Any, **keywords: Any) -> None:
        (Path(settings.weights) / "policy_version.json").write_text("nothing")
        await update_weights(*arguments, **keywords)

    monkeypatch.setattr(f"{module.__name__}.update_weights", damage_then_update)
    async with AsyncPolicyPublisher(settings) as publisher:
        with pytest.raises(PushFailed, match="does not contain a valid version"):
            await publisher.publish(1, save)


async def test_there_is_one_publisher_for_a_directory(settings: PublisherSettings) -> None:
    async with AsyncPolicyPublisher(settings):
        with pytest.raises(WeightsHeld):
            async with AsyncPolicyPublisher(settings):
                pass


def test_settings_are_read_from_the_configurations_of_the_runs(
    repository: Path, tmp_path: Path, write_weights: Callable[..., None]
) -> None:
    write_weights(tmp_path, {"embed.weight": (4, 2)})
    shared = ('engine.urls=["http://a:1","http://b:2/"]', "policy.on_update=keep", f"model.path={tmp_path}")
    names = ("color_codeword", "calculator")
    configs = [load_config(repository / "configs" / f"{name}.yaml", (*shared, f"run.name={name}")) for name in names]
    settings = publisher_settings(configs, str(tmp_path / "run"))
    assert settings.engines == ("http://a:1", "http://b:2")
    assert settings.on_update == "keep"
    assert settings.weights == tmp_path / "run" / "policy"
    assert settings.controls == {name: f"file://{tmp_path}/run/control/{name}" for name in names}
    assert settings.reference == tmp_path


def test_an_embedded_engine_has_no_address_for_weights(repository: Path, tmp_path: Path) -> None:
    config = load_config(repository / "configs" / "color_codeword.yaml")
    with pytest.raises(ConfigurationError, match=r"engine\.urls is empty"):
        publisher_settings([config], tmp_path)
