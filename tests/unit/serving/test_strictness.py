"""Requests that vLLM ignores, answers wrongly, or crashes at are refused with 400, and the message names the item."""

import base64
import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from renderers_adapter.tokenizer import FastTokenizer

Body = dict[str, Any]
MakeBody = Callable[..., Body]
Picture = Callable[..., bytes]


def refusal(engine: httpx.Client, body: Body, status: int = 400) -> Body:
    response = engine.post("/inference/v1/generate", json=body)
    assert response.status_code == status, response.text
    error: Body = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    return error


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": [1, -1]}, "token_ids[1]"),
        ({"token_ids": [1, "2"]}, "token_ids[1]"),
        ({"token_ids": [1024]}, "token_ids"),
        ({"tokens": [1]}, "tokens"),
        ({"request_id": ""}, "request_id"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"cache_salt": "x" * 1025}, "cache_salt"),
        ({"stream": True}, "stream"),
        ({"output_mode": "text"}, "output_mode"),
        ({"priority": 1}, "priority"),
        ({"features": {"mm_hashes": {}, "mm_placeholders": {}}}, "features"),
        ({"sampling_params": None}, "sampling_params"),
    ],
)
def test_a_faulty_body_is_refused(engine: httpx.Client, body: MakeBody, change: Body, param: str) -> None:
    error = refusal(engine, {**body(), **change})
    assert error["param"] == param
    assert param in error["message"]


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": -0.1},
        {"temperature": None},
        {"logprobs": -1},
        {"logprobs": None},
        {"logprobs": 21},
        {"max_tokens": 0},
        {"seed": "7"},
        {"stop_token_ids": [-1]},
        {"n": 2},
        {"top_p": 0.9},
        {"top_k": 5},
        {"min_p": 0.1},
        {"presence_penalty": 0.5},
        {"repetition_penalty": 1.1},
        {"min_tokens": 1},
        {"ignore_eos": True},
        {"stop": ["red"]},
        {"allowed_token_ids": [1]},
        {"logit_bias": {"1": 2.0}},
        {"prompt_logprobs": 1},
        {"structured_outputs": {"choice": ["red"]}},
        {"temperatur": 1.0},
    ],
    ids=str,
)
def test_an_unsupported_sampling_parameter_is_refused(engine: httpx.Client, body: MakeBody, change: Body) -> None:
    [key] = change
    error = refusal(engine, body(**change))
    assert error["param"].startswith(f"sampling_params.{key}")
    assert key in error["message"]


@pytest.mark.parametrize("key", ["temperature", "logprobs"])
def test_a_sampling_parameter_that_a_trainer_relies_on_is_required(
    engine: httpx.Client, body: MakeBody, key: str
) -> None:
    request = body()
    del request["sampling_params"][key]
    assert refusal(engine, request)["param"] == f"sampling_params.{key}"


def test_parameters_with_their_default_values_are_accepted(engine: httpx.Client, body: MakeBody) -> None:
    request = body(n=1, top_p=1.0, top_k=-1, stop=[], min_tokens=0, skip_special_tokens=False, max_tokens=None)
    request |= {"stream": False, "output_mode": "tokens", "features": None, "priority": 0, "content_parts": None}
    assert engine.post("/inference/v1/generate", json=request).status_code == 200


def test_another_model_is_not_found(engine: httpx.Client, body: MakeBody) -> None:
    error = refusal(engine, {**body(), "model": "gpt-2"}, status=404)
    assert error["type"] == "NotFoundError"
    assert "`gpt-2` does not exist here; ask for `tiny-qwen3-vl`" in error["message"]


def test_a_prompt_that_leaves_no_room_is_refused_with_its_expanded_length(
    engine: httpx.Client, body: MakeBody, picture: Picture
) -> None:
    request = body([picture("red")] * 32)
    assert len(request["token_ids"]) < 2048
    assert "maximum context length is 2048" in refusal(engine, request)["message"]


@pytest.mark.parametrize("change", [-1, 1])
def test_pads_and_images_must_match(engine: httpx.Client, body: MakeBody, picture: Picture, change: int) -> None:
    request = body([picture("red")] * 2)
    request["content_parts"] = request["content_parts"][:1] * (2 + change)
    assert f"2 image pads, content_parts {2 + change} images" in refusal(engine, request)["message"]


def test_a_pad_without_any_image_is_refused(engine: httpx.Client, body: MakeBody, picture: Picture) -> None:
    request = body([picture("red")])
    del request["content_parts"]
    assert "1 image pads, content_parts 0 images" in refusal(engine, request)["message"]


def test_expanded_ids_are_refused(
    engine: httpx.Client, body: MakeBody, picture: Picture, tokenizer: FastTokenizer
) -> None:
    request = body([picture("red")])
    at = request["token_ids"].index(tokenizer.token_id("<|image_pad|>"))
    request["token_ids"][at:at] = [request["token_ids"][at]] * 63
    assert f"token_ids[{at}] and token_ids[{at + 1}] are both image pads" in refusal(engine, request)["message"]


def test_a_video_pad_is_refused(engine: httpx.Client, body: MakeBody) -> None:
    assert "<|video_pad|>" in refusal(engine, body(question="<|video_pad|>"))["message"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"type": "video_url"}, "type"),
        ({"type": "image"}, "type"),
        ({"url": None}, "url"),
        ({"uuid": None}, "uuid"),
        ({"uuid": "F" * 32}, "uuid"),
        ({"uuid": "0" * 32}, "uuid"),
        ({"uuid": "0" * 64}, "uuid"),
        ({"image_url": {"url": "data:"}}, "image_url"),
        ({"url": "http://127.0.0.1/a.png"}, "url"),
        ({"url": "https://127.0.0.1/a.png"}, "url"),
        ({"url": "ftp://127.0.0.1/a.png"}, "url"),
        ({"url": "red.png"}, "url"),
        ({"url": ""}, "url"),
        ({"url": "data:text/plain;base64,AAAA"}, "url"),
        ({"url": "data:image/png,AAAA"}, "url"),
        ({"url": "data:image/png;base64,AA AA"}, "url"),
        ({"url": "data:image/png;base64,AAA"}, "url"),
        ({"url": "data:image/png;base64,AAAA="}, "url"),
        ({"url": "data:image/png;base64,AAAA===="}, "url"),
    ],
    ids=str,
)
def test_a_faulty_part_is_refused_by_its_index(
    engine: httpx.Client, body: MakeBody, picture: Picture, change: Body, param: str
) -> None:
    request = body([picture("red"), picture("blue")])
    request["content_parts"][1] |= change
    error = refusal(engine, request)
    assert error["param"] == f"content_parts[1].{param}"
    assert error["message"].startswith(f"content_parts[1].{param}")


def test_the_hash_of_other_bytes_is_refused(engine: httpx.Client, body: MakeBody, picture: Picture) -> None:
    request = body([picture("red"), picture("blue")])
    first, second = request["content_parts"]
    first["uuid"], second["uuid"] = second["uuid"], first["uuid"]
    assert "send that as its uuid" in refusal(engine, request)["message"]


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "tiff", "too long"])
def test_bytes_that_are_not_a_usable_image_are_refused(
    engine: httpx.Client, body: MakeBody, picture: Picture, damage: str
) -> None:
    file = io.BytesIO()
    Image.new("RGB", (1, 1000)).save(file, "tiff" if damage == "tiff" else "png")
    whole = picture("red", image_format="jpeg")
    data = {"empty": b"", "text": b"red", "cut": whole[: len(whole) // 2]}.get(damage, file.getvalue())
    assert "content_parts[0]" in refusal(engine, body([data]))["message"]


@pytest.fixture
def outside(tmp_path: Path, picture: Picture) -> Path:
    file = tmp_path / "secret.png"
    file.write_bytes(picture("red"))
    return file


def with_url(body: MakeBody, picture: Picture, url: str) -> Body:
    request = body([picture("red")])
    request["content_parts"][0]["url"] = url
    return request


def test_a_file_outside_the_allowed_directories_is_refused_in_every_form_of_its_url(
    engine: httpx.Client, body: MakeBody, picture: Picture, media_dir: Path, outside: Path
) -> None:
    link = media_dir / "link.png"
    link.symlink_to(outside)
    directory_link = media_dir / "link"
    directory_link.symlink_to(outside.parent)
    relative = os.path.relpath(outside, media_dir)
    for url in (
        outside.as_uri(),
        link.as_uri(),
        (directory_link / outside.name).as_uri(),
        f"{media_dir.as_uri()}/{relative}",
        f"{media_dir.as_uri()}/{relative}".replace("..", "%2e%2e"),
        f"file://localhost{outside}",
        f"file:{outside}",
        f"{media_dir.as_uri()}x/secret.png",
        outside.with_name("missing.png").as_uri(),
        "file:///proc/self/environ",
        "file:///",
        "file://",
        f"{media_dir.as_uri()}/%00",
    ):
        message = refusal(engine, with_url(body, picture, url))["message"]
        assert message.startswith("content_parts[0].url is outside the directories"), url
        assert str(outside.parent) not in message


def test_a_file_that_cannot_be_read_is_refused(
    engine: httpx.Client, body: MakeBody, picture: Picture, media_dir: Path
) -> None:
    os.mkfifo(media_dir / "pipe.png")
    for name in ("missing.png", "pipe.png", ""):
        message = refusal(engine, with_url(body, picture, f"{media_dir.as_uri()}/{name}"))["message"]
        assert "there is no file" in message


def test_a_file_on_another_host_is_refused(engine: httpx.Client, body: MakeBody, picture: Picture) -> None:
    assert "has the host" in refusal(engine, with_url(body, picture, "file://elsewhere/a.png"))["message"]


def test_a_file_whose_bytes_were_replaced_is_refused(
    engine: httpx.Client, body: MakeBody, picture: Picture, media_dir: Path
) -> None:
    data = picture("red")
    file = media_dir / f"{hashlib.sha256(data).hexdigest()}.png"
    file.write_bytes(picture("blue"))
    assert refusal(engine, with_url(body, picture, file.as_uri()))["param"] == "content_parts[0].uuid"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", base64.b64encode(b"x")])
def test_a_body_that_is_not_a_request_is_refused(engine: httpx.Client, content: bytes) -> None:
    response = engine.post("/inference/v1/generate", content=content)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "BadRequestError"


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"request_ids": "all"}', b'{"request_ids": [1]}'])
def test_an_abort_without_valid_ids_is_refused(engine: httpx.Client, content: bytes) -> None:
    response = engine.post("/inference/v1/abort_requests", content=content)
    assert response.status_code == 400
    assert "request_ids" in response.json()["error"]["message"]


def test_errors_of_unknown_paths_and_methods_have_the_same_form(engine: httpx.Client) -> None:
    for response, status in ((engine.get("/v2"), 404), (engine.get("/inference/v1/generate"), 405)):
        assert response.status_code == status
        assert response.json()["error"]["code"] == status
