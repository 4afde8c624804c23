"""What a question may contain: any text, images, and only what JSON can write."""

import copy
import hashlib
import io
from pathlib import Path
from typing import Any

import pybase64
import pytest
from PIL import Image

from rollout.images import ImageError
from rollout.judge import Judge, JudgeRefused
from rollout.judge import question as question_module
from tests.unit.judge.stand_in import always, serve_judge, verdict


def png(color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2), color).save(buffer, "PNG")
    return buffer.getvalue()


async def sent(question: Any, **sampling: Any) -> dict[str, Any]:
    """Return the body of the request for this question."""
    async with serve_judge(always(verdict("yes"))) as server, Judge(server.url, "m") as judge:
        await judge.ask(question, **sampling)
    return server.questions[0]


async def test_half_of_a_surrogate_pair_is_written_as_an_escape() -> None:
    body = await sent("cut \ud83d here", stop=["\udc00"])
    assert body["messages"][0]["content"] == r"cut \ud83d here"
    assert body["stop"] == [r"\udc00"]


@pytest.mark.parametrize(
    "give",
    [
        lambda image: {"type": "image", "image": image},
        lambda image: {"type": "image_url", "image_url": {"url": image}},
        lambda image: {"image": image},
    ],
    ids=["image", "image_url", "no_type"],
)
async def test_a_pillow_image_is_sent_as_a_data_uri(give: Any) -> None:
    image = Image.new("RGB", (4, 2), "red")
    messages = [{"role": "user", "content": [{"type": "text", "text": "red?"}, give(image)]}]
    before = copy.copy(messages[0]["content"])
    body = await sent(messages)
    text, part = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "red?"}
    header, _, data = part["image_url"]["url"].partition(",")
    assert (part["type"], header) == ("image_url", "data:image/png;base64")
    assert Image.open(io.BytesIO(pybase64.b64decode(data))).getpixel((0, 0)) == (255, 0, 0)
    assert messages[0]["content"] == before
    assert isinstance(next(iter(before[1].values())), str | Image.Image)


async def test_options_of_an_image_are_kept() -> None:
    part = {"type": "image_url", "image_url": {"url": png(), "detail": "low"}}
    body = await sent([{"role": "user", "content": [part]}])
    assert body["messages"][0]["content"][0]["image_url"]["detail"] == "low"


async def test_an_image_of_the_run_is_sent_with_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / f"{hashlib.sha256(png()).hexdigest()}.png"
    path.write_bytes(png())
    part = {"type": "image_url", "image_url": {"url": path.as_uri()}}
    body = await sent([{"role": "user", "content": [part]}])
    url = "data:image/png;base64," + pybase64.b64encode_as_string(png())
    assert body["messages"][0]["content"] == [{"type": "image_url", "image_url": {"url": url}}]
    assert part["image_url"] == {"url": path.as_uri()}


@pytest.mark.parametrize("url", ["https://h/a.png", "data:image/png;base64,AAAA"])
async def test_a_url_that_the_judge_can_read_is_sent_unchanged(url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    assert (await sent([{"role": "user", "content": [part]}]))["messages"][0]["content"] == [part]


async def test_another_file_is_never_sent(tmp_path: Path) -> None:
    named, other = tmp_path / f"{'0' * 64}.png", tmp_path / "secret.png"
    for path in (named, other):
        path.write_bytes(png())
        part = {"type": "image_url", "image_url": {"url": path.as_uri()}}
        async with Judge("http://127.0.0.1:9/v1", "m") as judge:
            with pytest.raises(ImageError, match=r"messages\[0\]\.content\[0\]: .*images of the run, or Pillow images"):
                await judge.ask([{"role": "user", "content": [part]}])


@pytest.mark.parametrize("source", [b"no image", "a.png", 5], ids=ascii)
async def test_the_error_of_an_invalid_image_has_its_place(source: Any) -> None:
    content = [{"type": "text", "text": "see"}, {"type": "image", "image": source}]
    async with Judge("http://127.0.0.1:9/v1", "m") as judge:
        with pytest.raises(ImageError, match=r"messages\[0\]\.content\[1\]: "):
            await judge.ask([{"role": "user", "content": content}])


def nested_in_itself() -> list[Any]:
    message: dict[str, Any] = {"role": "user"}
    message["more"] = message
    return [message]


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (None, "the question is None; give a string, or a list"),
        (5, "the question is an int; give a string, or a list"),
        ({"role": "user", "content": "x"}, "the question is a dict; give a string, or a list"),
        ([], "the question is an empty list; give a string, or a list"),
        ([{"role": "user", "content": {1, 2}}], "cannot be written as JSON: .*set"),
        ([{"role": "user", "content": [Image.new("L", (1, 1))]}], 'and an image as the part {"type": "image"'),
        ([{"role": "user", "content": 1 << 70}], "cannot be written as JSON: "),
        (nested_in_itself(), "the question has more than 48 levels"),
        ("x" * (1 << 25), "the question holds more than .* characters of text"),
    ],
    ids=["none", "number", "dict", "empty", "set", "image", "integer", "cycle", "long"],
)
async def test_a_question_that_cannot_be_sent_is_refused_by_name(question: Any, reason: str) -> None:
    async with Judge("http://127.0.0.1:9/v1", "m") as judge:
        with pytest.raises(JudgeRefused, match=reason):
            await judge.ask(question)


async def test_a_question_of_too_many_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question_module, "MAX_QUESTION_BYTES", 1000)
    async with Judge("http://127.0.0.1:9/v1", "m") as judge:
        with pytest.raises(JudgeRefused, match=r"the question has 1,\d\d\d bytes, but the limit is 1,000"):
            await judge.ask("x" * 1000)


@pytest.mark.parametrize("key", ["base_url", "api_key", "timeout", "max_tries", "max_concurrent", "cache_size"])
@pytest.mark.parametrize("value", [2, None])
async def test_arguments_of_the_judge_are_refused_as_keys_of_a_question(key: str, value: Any) -> None:
    async with Judge("http://127.0.0.1:9/v1", "m") as judge:
        with pytest.raises(JudgeRefused, match=rf"^ask\({key}=…\): this is an argument of Judge\(…\), not"):
            await judge.ask("well?", **{key: value})


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        float("-inf"),
        [0.5, float("nan")],
        {"1": float("inf")},
        {"a": ({"b": float("nan")},)},
    ],
    ids=str,
)
async def test_a_number_that_json_does_not_have_is_refused(value: Any) -> None:
    async with Judge("http://127.0.0.1:9/v1", "m") as judge:
        with pytest.raises(JudgeRefused, match=r"^ask\(bias=…\): .*(nan|inf).*; give finite numbers"):
            await judge.ask("well?", temperature=0.5, bias=value)


@pytest.mark.parametrize("key", ["model", "messages", "stream", "n"])
async def test_keys_that_the_judge_sets_itself_are_refused(key: str) -> None:
    value: dict[str, Any] = {key: 2}
    async with Judge("http://127.0.0.1:9/v1", "m") as judge:
        with pytest.raises(JudgeRefused, match=rf"^ask\({key}=…\): "):
            await judge.ask("well?", **value)
