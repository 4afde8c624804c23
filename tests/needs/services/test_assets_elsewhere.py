"""`rollout assets gc` for a run whose records are on a Redis server: records that are not acked keep their images."""

from collections.abc import Callable
from pathlib import Path

import anyio
import yaml

from rollout.cli.assets import gc as gc_command
from rollout.trainer import ReaderSettings, open_reader
from rollout.trainer.testing import checkpoint, put_all, scripted_rollout
from tests.needs.services.redis_server import RedisServer
from transports import open_queue


def test_an_image_is_removed_after_the_trainer_acked_its_records(
    tmp_path: Path, start_redis: Callable[..., RedisServer]
) -> None:
    url = start_redis().url
    images = tmp_path / "assets" / "images"
    images.mkdir(parents=True)
    image = images / ("0" * 64 + ".png")
    image.touch()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"queue": {"url": url}, "run": {"name": "env"}}))

    async def record() -> None:
        async with open_queue(url) as queue:
            await put_all(queue, await scripted_rollout(turns=1, image_tokens=4))

    async def train() -> None:
        async with open_reader(url, settings=ReaderSettings(require_images=False)) as reader:
            assert await reader.receive(timeout=10) is not None
            await checkpoint(reader)

    anyio.run(record)
    gc_command(tmp_path, grace=0.0, dry_run=False, as_json=True)
    assert image.exists()
    anyio.run(train)
    gc_command(tmp_path, grace=0.0, dry_run=False, as_json=True)
    assert not image.exists()
