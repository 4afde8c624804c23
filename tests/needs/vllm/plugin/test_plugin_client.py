"""Our client detects how to send images to an engine, and a rollout is the same either way."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog

from renderers_adapter.pool import shared_pool
from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.config.sections import MultimodalMode
from rollout.engine.client import EngineClient
from rollout.engine.errors import EngineRefused
from rollout.environments.color_codeword import ColorCodewordSettings, draw_square
from rollout.images import ImagePolicy
from rollout.records.messages import Message
from rollout.session.policy import PolicyClient
from rollout.testing import play
from rollout.trainer import check
from rollout.trainer.trajectory import Trajectory

TASK = Task(id="000000", index=0, seed=7)


class Gallery(Environment):
    """Shows one picture in each turn, in six sizes."""

    async def run(self, task: Task, model: Model) -> Score:
        messages: list[Message] = [{"role": "system", "content": "You describe pictures by numbers."}]
        for turn, color in enumerate(("red", "green", "blue", "yellow", "red", "blue")):
            url = draw_square(color, ColorCodewordSettings(image_size=40 + 24 * turn), seed=str(turn))
            picture = {"type": "image_url", "image_url": {"url": url}}
            messages.append({"role": "user", "content": [picture, {"type": "text", "text": f"Picture {turn}?"}]})
            messages.append((await model.chat(messages)).message)
        return Score(1.0)


async def played(live: Any, images: ImagePolicy, multimodal: MultimodalMode) -> Trajectory:
    renderers = shared_pool(live.model_dir, live.renderer)
    engine = EngineClient(
        [live.url], "tiny", timeout=120, api_key=live.api_key, multimodal=multimodal, geometry=renderers.geometry
    )
    digits = [renderers.tokenizer.token_id(digit) for digit in "0123456789"]
    async with engine:
        await engine.check()
        policy = PolicyClient(
            renderers, engine, images, {"temperature": 0.0, "max_tokens": 8, "allowed_token_ids": digits}
        )
        trajectory = (await play(Gallery(EnvironmentSettings()), TASK, policy=policy)).trajectory
    assert trajectory.error is None
    assert check(trajectory) == []
    return trajectory


@pytest.mark.parametrize("mode", ["offload", "inline"])
@pytest.mark.parametrize("server", ["qwen3-vl", "qwen2.5-vl", "no-cache"])
async def test_a_rollout_is_the_same_by_references_and_by_parts(
    fleet: Mapping[str, Any], wire: Any, media: Path, tmp_path: Path, server: str, mode: Any
) -> None:
    images = ImagePolicy(mode, media / tmp_path.name / "assets" / "images")
    with structlog.testing.capture_logs() as logs:
        by_reference = await played(fleet[server], images, "auto")
    assert [entry["event"] for entry in logs if "images are sent" in entry["event"]] == [
        "images are sent as references"
    ]
    assert wire(server).counter("mmraw_images_total") >= 1 + 2 + 3 + 4 + 5 + 6
    by_parts = await played(fleet[server], images, "content_parts")
    for one, other in zip(by_reference.nodes, by_parts.nodes, strict=True):
        assert one.run.ids.tolist() == other.run.ids.tolist()
        assert one.run.logprobs.tolist() == other.run.logprobs.tolist()


async def test_an_engine_with_another_layout_gets_parts_and_is_refused_with_mmraw(
    fleet: Mapping[str, Any],
) -> None:
    geometry = shared_pool(fleet["qwen2.5-vl"].model_dir, "qwen2.5-vl").geometry
    for multimodal in ("auto", "mmraw"):
        client = EngineClient([fleet["qwen3-vl"].url], "tiny", timeout=60, multimodal=multimodal, geometry=geometry)
        async with client:
            if multimodal == "auto":
                await client.check()
                assert [engine.resolves_references for engine in client.replicas] == [False]
            else:
                with pytest.raises(EngineRefused, match="its image layout is"):
                    await client.check()
