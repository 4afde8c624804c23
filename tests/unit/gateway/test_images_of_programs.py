"""Images in the requests of programs: what is no image is refused with its place, and harms no later turn."""

import base64
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rollout.testing import embedded_policy
from rollout.trainer import check
from tests.open_endpoints import PATHS, PICTURE_URL, QUESTION, OpenedEndpoint, error_problem, good_body, open_endpoint

GOOD = PICTURE_URL.partition(",")[2]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[OpenedEndpoint]:
    (tmp_path / "secret.png").write_bytes(base64.b64decode(GOOD))
    async with embedded_policy(tmp_path) as policy, open_endpoint(policy) as endpoint:
        yield endpoint


def huge_png() -> str:
    """Return the base64 of a PNG that says it has 60,000 × 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1 << 20))), (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return base64.b64encode(data).decode()


REFUSED_URLS = {
    "file": "file:///etc/passwd",
    "file in the images": "file://DIRECTORY/secret.png",
    "http": "http://127.0.0.1:1/a.png",
    "https": "https://example.invalid/a.png",
    "ftp": "ftp://example.invalid/a.png",
    "blob": "blob:null/abc",
    "a path": "DIRECTORY/secret.png",
    "no data": "data:",
    "garbage": "data:image/png;base64,AAAA",
    "no base64": "data:image/png;base64,%%%",
    "a text": "data:text/plain;base64,aGVsbG8=",
    "svg": "data:image/svg+xml;base64,PHN2Zy8+",
    "a bomb": f"data:image/png;base64,{huge_png()}",
    "half an image": f"data:image/png;base64,{GOOD[:80]}",
}


def image_part(dialect: str, url: str) -> dict[str, Any]:
    if dialect == "chat":
        return {"type": "image_url", "image_url": {"url": url}}
    if dialect == "responses":
        return {"type": "input_image", "image_url": url}
    if not url.startswith("data:image/"):
        return {"type": "image", "source": {"type": "url", "url": url}}
    kind, _, data = url.removeprefix("data:").partition(";base64,")
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


def text_part(dialect: str, text: str = "Look.") -> dict[str, Any]:
    return {"type": "input_text" if dialect == "responses" else "text", "text": text}


def conversation(dialect: str, *items: dict[str, Any]) -> dict[str, Any]:
    return good_body(dialect, **{"input" if dialect == "responses" else "messages": [*items]})


@pytest.mark.parametrize("name", REFUSED_URLS)
@pytest.mark.parametrize("dialect", PATHS)
async def test_what_is_no_image_is_refused_with_its_place_and_the_next_request_is_answered(
    opened: OpenedEndpoint, dialect: str, name: str, tmp_path: Path
) -> None:
    url = REFUSED_URLS[name].replace("DIRECTORY", str(tmp_path))
    bad = {"role": "user", "content": [text_part(dialect), image_part(dialect, url)]}
    key = "input" if dialect == "responses" else "messages"
    answer = await opened.client.post(PATHS[dialect], json=conversation(dialect, QUESTION, bad))
    assert (answer.status_code, error_problem(dialect, answer.json())) == (400, None), answer.text
    assert f"{key}[1].content[1]" in answer.json()["error"]["message"]
    good = {"role": "user", "content": [text_part(dialect), image_part(dialect, PICTURE_URL)]}
    answer = await opened.client.post(PATHS[dialect], json=conversation(dialect, QUESTION, good))
    assert answer.status_code == 200, answer.text


BAD_URL = REFUSED_URLS["garbage"]


async def test_the_place_counts_the_system_messages_that_are_joined(opened: OpenedEndpoint) -> None:
    system = {"role": "system", "content": "Be brief."}
    bad = {"role": "user", "content": [text_part("chat"), image_part("chat", BAD_URL)]}
    answer = await opened.client.post(PATHS["chat"], json=conversation("chat", system, system, system, QUESTION, bad))
    assert answer.status_code == 400
    assert "messages[4].content[1]" in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "messages[4].content[1]"


async def test_the_place_counts_developer_items_and_calls_of_one_answer(opened: OpenedEndpoint) -> None:
    developer = {"role": "developer", "content": "Be brief."}
    calls = [{"type": "function_call", "call_id": f"c{at}", "name": "f", "arguments": "{}"} for at in range(2)]
    outputs: list[dict[str, Any]] = [
        {"type": "function_call_output", "call_id": "c0", "output": "1"},
        {"type": "function_call_output", "call_id": "c1", "output": [image_part("responses", BAD_URL)]},
    ]
    body = conversation("responses", developer, developer, QUESTION, *calls, *outputs)
    answer = await opened.client.post(PATHS["responses"], json=body | {"instructions": "Be kind."})
    assert answer.status_code == 400
    assert "input[6].output[0]" in answer.json()["error"]["message"]


def tool_results(url: str) -> list[dict[str, Any]]:
    """Return a question, two calls, and their results in one user message, of which the second has an image."""
    calls = [{"type": "tool_use", "id": f"c{at}", "name": "f", "input": {}} for at in range(2)]
    results: list[dict[str, Any]] = [
        {"type": "tool_result", "tool_use_id": "c0", "content": "1"},
        {
            "type": "tool_result",
            "tool_use_id": "c1",
            "content": [text_part("messages"), image_part("messages", url)],
        },
        text_part("messages", "And now?"),
    ]
    return [QUESTION, {"role": "assistant", "content": calls}, {"role": "user", "content": results}]


async def test_the_place_is_that_of_a_tool_result_in_its_user_message(opened: OpenedEndpoint) -> None:
    body = conversation("messages", *tool_results(BAD_URL)) | {"system": "Be brief."}
    answer = await opened.client.post(PATHS["messages"], json=body)
    assert answer.status_code == 400
    assert "messages[2].content[1].content[1]" in answer.json()["error"]["message"]


async def test_the_place_is_that_of_a_part_behind_tool_results(opened: OpenedEndpoint) -> None:
    *before, last = tool_results(PICTURE_URL)
    last["content"].append(image_part("messages", BAD_URL))
    answer = await opened.client.post(PATHS["messages"], json=conversation("messages", *before, last))
    assert answer.status_code == 400
    assert "messages[2].content[3]" in answer.json()["error"]["message"]


@pytest.mark.parametrize("dialect", ["chat", "messages"])
async def test_a_refused_image_does_not_harm_the_rest_of_its_conversation(tmp_path: Path, dialect: str) -> None:
    async with embedded_policy(tmp_path) as policy, open_endpoint(policy) as opened:
        messages: list[dict[str, Any]] = [QUESTION]
        for _ in range(3):
            answer = (await opened.client.post(PATHS[dialect], json=conversation(dialect, *messages))).json()
            content = answer["content"] if dialect == "messages" else answer["choices"][0]["message"]["content"]
            messages += [{"role": "assistant", "content": content}]
            bad = {"role": "user", "content": [text_part(dialect), image_part(dialect, BAD_URL)]}
            refused = await opened.client.post(PATHS[dialect], json=conversation(dialect, *messages, bad))
            assert refused.status_code == 400
            messages += [{"role": "user", "content": [text_part(dialect), image_part(dialect, PICTURE_URL)]}]
    assert opened.played is not None
    trajectory = opened.played.trajectory
    assert [step.echo for step in trajectory.steps] == [None, "exact", "exact"]
    assert [step.prompt_source for step in trajectory.steps[1:]] == ["bridge", "bridge"]
    assert check(trajectory) == []
