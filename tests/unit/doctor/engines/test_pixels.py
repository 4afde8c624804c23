"""The probe images, and the summary of a comparison of pixels."""

import base64
from types import SimpleNamespace
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np
import orjson
import pytest

from rollout.doctor.engines.pixel_comparison import (
    NormalisedPatches,
    PixelComparison,
    PixelDifference,
    ProbeImage,
    compare_pixels,
    probe_images,
)
from rollout.doctor.engines.pixels import find_fix
from rollout.engine.errors import EngineRefused
from rollout.engine.stand_in import StandInEngine
from rollout.engine.transport import EngineTransport
from rollout.images import load_pixels
from tests.unit.engine.vllm_contract import VERSIONS, Contract


def difference(backend: str, probe: str = "odd", differing: int = 0) -> PixelDifference:
    return PixelDifference(probe, backend, 100, differing, min(differing, 255))  # type: ignore[arg-type]


def test_every_probe_is_an_image_that_the_trainer_loads() -> None:
    sizes = {probe.name: load_pixels(probe.data).size for probe in probe_images()}
    assert sizes["odd"] == (333, 517)
    assert [sizes[f"orientation {orientation}"] for orientation in (1, 3, 6, 8)] == [
        (150, 97),
        (150, 97),
        (97, 150),
        (97, 150),
    ]
    assert {"RGBA", "palette", "transparent palette", "grey", "enlarged", "shrunk", "thin"} < sizes.keys()


def test_the_eight_orientations_have_different_pixels() -> None:
    oriented = [load_pixels(probe.data).tobytes() for probe in probe_images() if probe.name.startswith("orientation")]
    assert len(set(oriented)) == 8


def test_a_backend_without_differences_matches() -> None:
    comparison = PixelComparison((difference("pil", differing=3), difference("torchvision")), {})
    assert comparison.matching_backend == "torchvision"
    assert comparison.summary().splitlines() == [
        "the engine and torchvision make the same patches of 1 probe images: 8-bit values before normalisation, equal "
        "bit for bit",
        "the normalisation, and what the network makes of it, are compared by --forward alone",
        "pil makes other patches of odd. The largest difference is 3 of 255, in odd, where 3 of 100 values differ",
    ]


def test_a_backend_with_one_different_probe_does_not_match() -> None:
    comparison = PixelComparison(
        (difference("pil"), difference("pil", "RGBA", 1)), {"torchvision": "it is not installed"}
    )
    assert comparison.matching_backend is None
    assert comparison.summary().splitlines() == [
        "pil makes other patches of RGBA. The largest difference is 1 of 255, in RGBA, where 1 of 100 values differ",
        "torchvision was not compared: it is not installed",
    ]


def test_no_backend_matches_if_none_was_compared() -> None:
    assert PixelComparison((), {"pil": "it is not installed"}).matching_backend is None


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_vllm_knows_the_request_for_the_pixels_of_a_probe(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    sent: list[Any] = []

    async def refuse(_: str, body: bytes) -> tuple[int, bytes]:
        sent.append(orjson.loads(body))
        return 400, b""

    processor = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 1024, "max_pixels": 65536}
    without_torch = SimpleNamespace(process=lambda _: None)
    monkeypatch.setattr("rollout.doctor.engines.pixel_comparison.image_processor_for", lambda *_, **__: without_torch)
    monkeypatch.setattr(
        "rollout.doctor.engines.pixel_comparison.probe_images", lambda: [ProbeImage("a", "image/png", b"png")]
    )
    with pytest.raises(EngineRefused):
        await compare_pixels(StandInEngine(refuse), "http://engine", model="tiny", config=processor, family="qwen_vl")
    contract = Contract.of_version(version)
    model = contract.model_of("POST /v1/chat/completions/render", "request")
    assert list(contract.problems(sent[0], model)) == []


class _NormalisingEngine(EngineTransport):
    async def send(self, method: str, url: str, body: bytes, *, session_id: str | None = None) -> tuple[int, bytes]:
        values = msgpack.ExtType(1, np.zeros((4, 4), np.float32).tobytes())
        item = base64.b64encode(msgpack.packb({"pixel_values": {"data": ["float32", [4, 4], values]}})).decode()
        return 200, orjson.dumps({"features": {"kwargs_data": {"image": [item]}}})


async def test_normalised_patches_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.doctor.engines.pixel_comparison.image_processor_for", lambda *_, **__: _AnyProcessor())
    monkeypatch.setattr("rollout.doctor.engines.pixel_comparison.geometry_for", lambda *_: None)
    monkeypatch.setattr("rollout.doctor.engines.pixel_comparison.vllm_modality_of", lambda _: "image")
    with pytest.raises(NormalisedPatches, match="renders float32 values, which are normalised already"):
        await compare_pixels(_NormalisingEngine(), "http://engine", model="tiny", config={}, family="qwen_vl")


class _AnyProcessor:
    def process(self, image: object) -> None:
        pass


def test_a_backend_that_cannot_be_used_is_named_before_the_processor() -> None:
    reason = "torchvision cannot be imported. Install it: pip install 'rollout-rl[trainer]'"
    fix = find_fix(PixelComparison((difference("pil", differing=3),), {"torchvision": reason}))
    assert fix.startswith("torchvision may make the patches of the engine, but it cannot be used here: ")
    assert fix.endswith(reason)
    assert find_fix(PixelComparison((difference("pil", differing=3),), {})).startswith("take preprocessor_config.json")
