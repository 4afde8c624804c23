"""Requests that stock vLLM answers with garbage, or that kill it, get a 400 here; the next request gets an answer."""

import base64
import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
from PIL import Image

DamageRequest = Callable[[Any, dict[str, Any]], None]
SERVERS = ["qwen3-vl", "no-cache"]


def features(body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = body["features"]
    return found


def shift(amount: int) -> DamageRequest:
    def damage(wire: Any, body: dict[str, Any]) -> None:
        features(body)["mm_placeholders"]["image"][0]["offset"] += amount

    return damage


def resize(amount: int) -> DamageRequest:
    def damage(wire: Any, body: dict[str, Any]) -> None:
        features(body)["mm_placeholders"]["image"][0]["length"] += amount

    return damage


def lengthen_with_pads(wire: Any, body: dict[str, Any]) -> None:
    """Add more pads than the image has embeddings, and a range that covers them; this kills a stock engine."""
    place = features(body)["mm_placeholders"]["image"][0]
    body["token_ids"][place["offset"] : place["offset"]] = [wire.adapter.pad_id] * 7
    place["length"] += 7


def shorten_with_pads(wire: Any, body: dict[str, Any]) -> None:
    place = features(body)["mm_placeholders"]["image"][0]
    del body["token_ids"][place["offset"] : place["offset"] + 7]
    place["length"] -= 7


def over_text(wire: Any, body: dict[str, Any]) -> None:
    place = features(body)["mm_placeholders"]["image"][0]
    token_ids = body["token_ids"]
    token_ids[place["offset"] : place["offset"] + place["length"]] = [token_ids[0]] * place["length"]


def rename(modality: str) -> DamageRequest:
    def damage(wire: Any, body: dict[str, Any]) -> None:
        for part in features(body).values():
            part[modality] = part.pop("image")

    return damage


def set_data(*data: str | None) -> DamageRequest:
    def damage(wire: Any, body: dict[str, Any]) -> None:
        features(body)["kwargs_data"]["image"] = list(data)

    return damage


def no_data(wire: Any, body: dict[str, Any]) -> None:
    features(body)["kwargs_data"] = None


def metadata_of_another(wire: Any, body: dict[str, Any]) -> None:
    features(body)["mm_metadata"] = {"image": wire.tensors([wire.picture(640, 640)])}


def no_features(wire: Any, body: dict[str, Any]) -> None:
    del body["features"]


FEATURES: dict[str, DamageRequest] = {
    "a range that begins early": shift(-1),
    "a range that begins late": shift(1),
    "a range that is short": resize(-1),
    "a range that is long": resize(1),
    "a range longer than the embeddings": lengthen_with_pads,
    "a range shorter than the embeddings": shorten_with_pads,
    "a range over other tokens": over_text,
    "the modality video": rename("video"),
    "the modality audio": rename("audio"),
    "an unknown modality": rename("smell"),
    "a null": set_data(None),
    "an empty text": set_data(""),
    "no data at all": no_data,
    "metadata of another image": metadata_of_another,
    "garbage": set_data("AAAA"),
    "garbage that is not base64": set_data("é"),
    "pads without features": no_features,
}


@pytest.fixture(params=SERVERS)
def server(wire: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A server; after the test, it must answer as before."""
    found = wire(request.param)
    sound = [found.picture(200, 120, seed=7)]
    before = found.answer_of(found.features(sound))
    yield found
    assert found.answer_of(found.features(sound)) == before
    assert found.answer_of(found.content_parts(sound)) == before


def expect_refusal(client: Any, body: dict[str, Any], where: str | None = None) -> None:
    refused = client.counter("mmraw_requests_refused_total")
    answer = client.post(body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_mm_image_ref"
    if where is not None:
        assert error["param"] == where
        assert error["message"].startswith(where)
    assert client.counter("mmraw_requests_refused_total") == refused + 1


@pytest.mark.parametrize("kind", ["reference", "tensors"])
@pytest.mark.parametrize("spoil", FEATURES.values(), ids=FEATURES)
def test_wrong_features_are_refused(server: Any, kind: str, spoil: DamageRequest) -> None:
    picture = server.picture(200, 120)
    body = server.features([picture], server.tensors([picture]) if kind == "tensors" else None)
    spoil(server, body)
    expect_refusal(server, body)


def test_a_request_that_vllm_refuses_itself_is_still_refused(server: Any) -> None:
    body = server.features([server.picture(200, 120)])
    resize(5000)(server, body)
    assert server.post(body).status_code == 400


PARTS: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "expanded ids": lambda server, body: body.update(token_ids=server.expanded([server.picture(200, 120)])[0]),
    "fewer parts than pads": lambda server, body: body.update(token_ids=server.logical(2)),
    "no parts at all": lambda server, body: body.update(content_parts=[]),
    "more parts than pads": lambda server, body: body["content_parts"].append(server.picture(64, 64).part()),
    "an unknown type": lambda server, body: body["content_parts"][0].update(type="picture_url"),
    "a part of text": lambda server, body: body["content_parts"].append({"type": "text", "text": "well"}),
    "a part that only a cache could hold": lambda server, body: body["content_parts"][0].update(url=None),
    "the hash of another image": lambda server, body: body["content_parts"][0].update(uuid=server.picture(64, 64).hash),
    "an invalid hash": lambda server, body: body["content_parts"][0].update(uuid="my favourite"),
}


@pytest.mark.parametrize("spoil", PARTS.values(), ids=PARTS)
def test_wrong_content_parts_are_refused(server: Any, spoil: DamageRequest) -> None:
    body = server.content_parts([server.picture(200, 120)])
    spoil(server, body)
    expect_refusal(server, body)


def test_other_data_under_a_known_hash_is_refused(server: Any) -> None:
    known, other = server.picture(200, 120), server.picture(200, 120)
    server.answer_of(server.features([known]))
    expect_refusal(server, server.features([known], server.tensors([other])), "features.kwargs_data.image[0]")
    expect_refusal(server, server.features([known], [other.ref(mm_hash=known.hash)]), "features.kwargs_data.image[0]")
    expect_refusal(server, server.content_parts([other]) | {"content_parts": [{**other.part(), "uuid": known.hash}]})


def test_other_tensors_under_a_known_hash_are_refused(server: Any) -> None:
    one, other = server.picture(200, 120), server.picture(200, 120)
    server.answer_of(server.features([one], server.tensors([one])))
    expect_refusal(server, server.features([one], server.tensors([other])), "features.kwargs_data.image[0]")


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("pixel_values", lambda tensor: tensor.astype(np.float32) / 255),
        ("pixel_values", lambda tensor: tensor[:-4]),
        ("pixel_values", lambda tensor: tensor[:, :-1]),
        ("pixel_values", lambda tensor: tensor[0]),
        ("image_grid_thw", lambda tensor: tensor * 2),
        ("image_grid_thw", lambda tensor: tensor[::-1]),
        ("image_grid_thw", lambda tensor: -tensor),
        ("image_grid_thw", lambda tensor: tensor.astype(np.int32)),
        ("image_grid_thw", None),
        ("second_opinion", lambda tensor: tensor),
    ],
    ids=["normalised", "rows", "columns", "flat", "larger", "turned", "negative", "type", "absent", "added"],
)
def test_tensors_that_this_server_would_not_make_are_refused(server: Any, key: str, change: Any) -> None:
    picture = server.picture(200, 120)
    (made,) = server.tensors([picture])
    expect_refusal(server, server.features([picture], [reshape(made, key, change)]), "features.kwargs_data.image[0]")


def reshape(text: str, key: str, change: Any) -> str:
    """Return a serialised item, as vLLM writes it, with one tensor changed or, for None, left out."""
    item = msgpack.unpackb(base64.b64decode(text))
    elem = item.get(key, item["image_grid_thw"])
    dtype, shape, data = elem["data"]
    if change is None:
        del item[key]
    else:
        tensor = np.ascontiguousarray(change(np.frombuffer(data.data, dtype).reshape(shape)))
        written = msgpack.ExtType(data.code, tensor.tobytes())
        item[key] = {**elem, "data": [str(tensor.dtype), list(tensor.shape), written]}
    return base64.b64encode(msgpack.packb(item)).decode()


def encode64(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


BAD_FIELDS: dict[str, Any] = {
    "run_id": "../..",
    "family": "kimi_k25",
    "fingerprint": "0" * 32,
    "modality": "video",
    "mm_hash": "0" * 32,
    "payload": {"image_grid_thw": [[1, 2, 2]]},
    "raw_image_id": "../../etc/passwd",
}


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", BAD_FIELDS)
@pytest.mark.parametrize("kind", ["false", "empty", "number"])
def test_a_reference_with_a_bad_field_is_refused(wire: Any, version: int, name: str, kind: str) -> None:
    client = wire("qwen3-vl")
    picture = client.picture(200, 120)
    names = ("run_id", "family", "fingerprint", "modality", "mm_hash", "raw_image_id", "payload")
    values = ("run-1", picture.family, picture.fingerprint, "image", picture.hash, picture.path.name, picture.payload)
    fields = dict(zip(names, values, strict=True))
    fields[name] = {"false": BAD_FIELDS[name], "empty": "", "number": 7}[kind]
    data = "mmraw:v3:" + encode64(fields)
    if version == 2:
        data = ":".join(["mmraw:v2", *(str(fields[key]) for key in names[:-1]), encode64(fields["payload"])])
    expect_refusal(client, client.features([picture], [data]), "features.kwargs_data.image[0]")


def test_only_files_below_the_servers_directory_are_read(wire: Any, media: Path, tmp_path: Path) -> None:
    client = wire("qwen3-vl")
    picture = client.picture(200, 120)
    where = picture.path.parent
    outside = tmp_path / picture.path.name
    outside.write_bytes(picture.data)
    picture.path.unlink()
    refused = "features.kwargs_data.image[0]"
    expect_refusal(client, client.features([picture]), refused)
    picture.path.symlink_to(outside)
    expect_refusal(client, client.features([picture]), refused)
    (media / "linked").symlink_to(tmp_path)
    expect_refusal(client, client.features([picture], [picture.ref(run_id="linked")]), refused)
    (where / "linked.png").hardlink_to(outside)
    client.answer_of(client.features([picture], [picture.ref(raw_image_id="linked.png")]))


def test_the_bad_one_of_several_images_is_named(wire: Any) -> None:
    client = wire("qwen3-vl")
    pictures = [client.picture(64, 64) for _ in range(3)]
    data = [picture.ref() for picture in pictures]
    data[1] = pictures[1].ref(raw_image_id="gone.png")
    expect_refusal(client, client.features(pictures, data), "features.kwargs_data.image[1]")


def test_a_file_that_is_not_an_image_is_refused(wire: Any) -> None:
    client = wire("qwen3-vl")
    picture = client.picture(200, 120)
    for data in (b"", b"<svg/>", picture.data[:50], picture.data[: len(picture.data) // 2]):
        picture.path.write_bytes(data)
        broken = type(picture)(data, picture.path, picture.payload, picture.tokens, picture.family, picture.fingerprint)
        expect_refusal(client, client.features([broken]), "features.kwargs_data.image[0]")


def test_a_missing_image_directory_is_an_error_of_the_server(wire: Any, media: Path) -> None:
    client = wire("qwen3-vl")
    picture = client.picture(64, 64)
    failed = client.counter("mmraw_requests_failed_total")
    media.rename(media.with_name("away"))
    try:
        answer = client.post(client.features([picture]))
    finally:
        media.with_name("away").rename(media)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "InternalServerError")
    assert client.counter("mmraw_requests_failed_total") == failed + 1
    client.answer_of(client.features([picture]))


def test_an_unknown_model_is_still_answered_404(wire: Any) -> None:
    client = wire("qwen3-vl")
    assert client.post(client.features([client.picture(64, 64)], model="another")).status_code == 404


def test_an_image_that_takes_too_much_memory_is_refused_before_it_is_decoded(wire: Callable[[str], Any]) -> None:
    server, file = wire("qwen3-vl"), io.BytesIO()
    Image.new("P", (13_000, 13_000)).save(file, "PNG", transparency=0)  # 14 bytes a pixel on its way to RGB
    bomb = dataclasses.replace(server.picture(64, 64), data=file.getvalue())
    answer = server.post(server.features([bomb], inline=True))
    assert answer.status_code == 400, answer.text
    assert "bytes of memory, but this server allows 1,610,612,736" in answer.json()["error"]["message"]
    assert "MMRAW_IMAGE_MEMORY" in answer.json()["error"]["message"]
