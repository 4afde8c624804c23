"""How images are sent: as references to an engine that resolves them, else as parts; and the reason in the log."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import structlog

from renderers_adapter.geometry import Geometry, geometry_for
from renderers_adapter.refs import parse_ref
from renderers_adapter.tokens import ExpandedIds, LogicalIds, Placeholder
from rollout.config.load import load_config
from rollout.engine.client import EngineClient
from rollout.engine.errors import EngineRefused, RequestRefusedLocally
from rollout.engine.image_refs import ImageRef
from rollout.engine.protocol import encode_request
from rollout.engine.request import GenerateRequest
from rollout.engine.stand_in import StandInEngine
from rollout.testing import embedded_policy

QWEN_PROCESSOR = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 1024, "max_pixels": 65536}
KIMI_PROCESSOR = {
    "patch_size": 14,
    "merge_kernel_size": 2,
    "in_patch_limit": 16384,
    "patch_limit_on_one_side": 512,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
PAD = 7
INLINE = "data:image/png;base64,AAAA"
HASH = hashlib.sha256(bytes(3)).hexdigest()[:32]


@pytest.fixture
def geometry() -> Geometry:
    return geometry_for("qwen_vl", QWEN_PROCESSOR)


def make_request(*urls: str, payload: Any = None) -> GenerateRequest:
    """Return a request with these images, of two tokens each."""
    images = tuple(ImageRef(url, HASH, payload or {"image_grid_thw": [[1, 2, 4]]}) for url in urls)
    logical, expanded, placeholders = [1], [1], []
    for _ in images:
        placeholders.append(Placeholder(HASH, len(expanded), 2))
        logical += [PAD, 2]
        expanded += [PAD, PAD, 2]
    return GenerateRequest(
        request_id="r",
        session_id="s",
        prompt=LogicalIds(np.asarray(logical, np.int32)),
        images=images,
        expanded_prompt=ExpandedIds(np.asarray(expanded, np.int32)),
        known_token_count=0,
        placeholders=tuple(placeholders),
        pad_id=PAD,
        sampling={"temperature": 0.0},
        stop_token_ids=(),
    )


def encoded(image_request: GenerateRequest, geometry: Geometry) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(encode_request(image_request, "tiny", "r.0", geometry=geometry))
    return body


def test_references_are_sent_with_the_expanded_prompt_and_without_parts(geometry: Geometry) -> None:
    url = f"file:///data/runs/demo-1/assets/images/{HASH}.png"
    body = encoded(make_request(url, INLINE), geometry)
    assert "content_parts" not in body
    assert body["token_ids"] == [1, PAD, PAD, 2, PAD, PAD, 2]
    assert body["features"]["mm_hashes"] == {"image": [HASH, HASH]}
    assert body["features"]["mm_placeholders"] == {"image": [{"offset": 1, "length": 2}, {"offset": 4, "length": 2}]}
    file, inline = (parse_ref(text) for text in body["features"]["kwargs_data"]["image"])
    assert (file.run_id, file.raw_image_id, file.raw_uri) == ("demo-1", f"{HASH}.png", None)
    assert (inline.run_id, inline.raw_image_id, inline.raw_uri) == ("inline", None, INLINE)
    for ref in (file, inline):
        assert (ref.family, ref.fingerprint, ref.modality) == ("qwen_vl", geometry.fingerprint, "image")
        assert (ref.mm_hash, ref.payload) == (HASH, {"image_grid_thw": [[1, 2, 4]]})


def test_a_file_is_written_as_a_reference_once_for_all_turns(
    geometry: Geometry, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_request = make_request(f"file:///data/runs/demo-1/assets/images/{HASH}.png")
    first = encoded(image_request, geometry)
    monkeypatch.setattr("rollout.engine.features.format_ref", None)
    assert encoded(image_request, geometry) == first
    other_geometry = geometry_for("qwen_vl", {**QWEN_PROCESSOR, "max_pixels": 131072})
    with pytest.raises(TypeError):
        encoded(image_request, other_geometry)


def test_images_of_kimi_have_the_modality_of_the_engine() -> None:
    image_request = make_request(INLINE, payload={"grid_thws": [[1, 2, 4]]})
    body = encoded(image_request, geometry_for("kimi_k25", KIMI_PROCESSOR))
    assert body["features"]["mm_hashes"].keys() == {"vision_chunk"}
    assert parse_ref(body["features"]["kwargs_data"]["vision_chunk"][0]).modality == "vision_chunk"


@pytest.mark.parametrize(
    ("directory", "run"),
    [
        ("/data/runs/demo-1/assets/images", "demo-1"),
        ("/data/pictures", "pictures"),
        ("/data/images", "images"),
        ("/data%20of%20ours/runs/demo-1/assets/images", "demo-1"),
    ],
)
def test_the_run_of_an_image_is_the_directory_that_keeps_it(geometry: Geometry, directory: str, run: str) -> None:
    body = encoded(make_request(f"file://{directory}/{HASH}.png"), geometry)
    assert parse_ref(body["features"]["kwargs_data"]["image"][0]).run_id == run


def test_a_directory_that_no_reference_can_name_is_refused_with_a_fix(geometry: Geometry) -> None:
    with pytest.raises(RequestRefusedLocally, match="content_parts"):
        encoded(make_request(f"file:///data/my%20pictures/{HASH}.png"), geometry)


def test_a_text_prompt_has_neither_references_nor_parts(geometry: Geometry) -> None:
    body = encoded(make_request(), geometry)
    assert not {"features", "content_parts"} & body.keys()


def test_banned_tokens_get_the_lowest_bias_and_other_biases_stay(geometry: Geometry) -> None:
    request = make_request()
    biased = replace(request, sampling={**request.sampling, "logit_bias": {"5": 1.0, "7": 3.0}}, banned_ids=(7, 9))
    assert encoded(biased, geometry)["sampling_params"]["logit_bias"] == {"5": 1.0, "7": -100.0, "9": -100.0}


def client_of_plugins(descriptions: Sequence[Any], **settings: Any) -> EngineClient:
    """Return a client of engines whose plugins have these descriptions; None means no plugin."""

    async def answer(url: str, _: bytes) -> tuple[int, bytes]:
        if url.endswith("/v1/models"):
            return 200, orjson.dumps({"data": [{"id": "tiny", "max_model_len": 100}]})
        description = descriptions[int(url.removesuffix("/mmraw/version")[-1])]
        return 404 if description is None else 200, orjson.dumps(description)

    urls = [f"http://engine-{number}" for number in range(len(descriptions))]
    return EngineClient(urls, "tiny", timeout=20, transport=StandInEngine(answer), **settings)


def plugin_description(geometry: Geometry, **changed: Any) -> dict[str, Any]:
    geometry_fields = {"family": geometry.family, "fingerprint": geometry.fingerprint, "modality": "image"}
    return {"version": "0.1.0", "refs": ["v2", "v3"], **geometry_fields, **changed}


async def test_each_engine_gets_images_in_the_form_that_it_supports(geometry: Geometry) -> None:
    descriptions = [plugin_description(geometry), None, plugin_description(geometry, family=None, fingerprint=None)]
    with structlog.testing.capture_logs() as logs:
        async with client_of_plugins(descriptions, multimodal="auto", geometry=geometry) as client:
            await client.check()
            assert [replica.resolves_references for replica in client.replicas] == [True, False, False]
    assert {entry["engine"]: entry["event"] for entry in logs} == {
        "http://engine-0": "images are sent as references",
        "http://engine-1": "images are sent as content_parts",
        "http://engine-2": "images are sent as content_parts",
    }


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"fingerprint": "0" * 32}, "its image layout is"),
        ({"modality": "vision_chunk"}, "its image layout is"),
        ({"refs": ["v2"]}, "v3"),
        ({"refs": None}, "in another form than our plugin"),
    ],
)
async def test_an_engine_that_cannot_resolve_our_references_is_refused_with_the_reason(
    geometry: Geometry, changed: dict[str, Any], why: str
) -> None:
    descriptions = [plugin_description(geometry, **changed)]
    async with client_of_plugins(descriptions, multimodal="mmraw", geometry=geometry) as client:
        with pytest.raises(EngineRefused, match=f"engine.multimodal is mmraw.*{why}"):
            await client.check()


async def test_no_plugin_is_asked_if_references_are_not_possible(geometry: Geometry) -> None:
    for multimodal, own in (("content_parts", geometry), ("auto", None), ("mmraw", None)):
        async with client_of_plugins([plugin_description(geometry)], multimodal=multimodal, geometry=own) as client:
            await client.check()
            assert not client.replicas[0].resolves_references


async def test_the_embedded_engine_gets_parts(tmp_path: Path, geometry: Geometry) -> None:
    async with embedded_policy(tmp_path) as policy:
        (url,) = (replica.url for replica in policy.engine.replicas)
        async with EngineClient([url], policy.engine.model, timeout=20, multimodal="auto", geometry=geometry) as client:
            await client.check()
            assert not client.replicas[0].resolves_references


def test_the_setting_is_one_of_three_words(repository: Path) -> None:
    path = repository / "configs" / "color_codeword.yaml"
    assert load_config(path).engine.multimodal == "auto"
    for word in ("content_parts", "mmraw"):
        assert load_config(path, [f"engine.multimodal={word}"]).engine.multimodal == word
