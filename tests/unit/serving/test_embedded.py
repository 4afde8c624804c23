"""The answers of the embedded engine to valid requests, over real HTTP."""

import inspect
import io
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog.testing
from PIL import Image

from renderers_adapter.tokenizer import FastTokenizer
from rollout.environments.palette import PALETTE
from rollout.serving.embedded import EmbeddedServer, EmbeddedSettings
from rollout.serving.policies import AnswerSlot, Pixels
from rollout.serving.request_reader import RequestReader

Body = dict[str, Any]
MakeBody = Callable[..., Body]
Picture = Callable[..., bytes]


class LongAnswer:
    """A policy that says forty tokens."""

    def answer(self, prompt: str, images: list[Pixels]) -> list[AnswerSlot]:
        return [AnswerSlot({" red": 0.0}) for _ in range(40)]


class Broken:
    """A policy that fails."""

    def answer(self, prompt: str, images: list[Pixels]) -> list[AnswerSlot]:
        raise RuntimeError("no idea")


class Ambiguous:
    """A policy in which one candidate begins like another."""

    def answer(self, prompt: str, images: list[Pixels]) -> list[AnswerSlot]:
        return [AnswerSlot({"red": 0.0, "red red": 0.0})]


class Lazy:
    """A policy that fails in a library, after its first slot."""

    def answer(self, prompt: str, images: list[Pixels]) -> Iterator[AnswerSlot]:
        yield AnswerSlot({"red": 0.0})
        json.loads("{")


class LikesPlaceholders:
    """A policy that prefers a placeholder to anything else."""

    def answer(self, prompt: str, images: list[Pixels]) -> list[AnswerSlot]:
        return [AnswerSlot({"<|image_pad|>": 9.0, "red": 1.0, "blue": 1.0})]


def line_of(policy: type) -> int:
    """Return the line that fails, or for a wrong slot the line of the method."""
    lines, first = inspect.getsourcelines(policy)
    wanted = {"Broken": "raise ", "Lazy": "json.loads", "Ambiguous": "def answer"}[policy.__name__]
    return first + next(index for index, line in enumerate(lines) if wanted in line)


def named(policy: type) -> str:
    return f"{policy.__module__}:{policy.__name__}"


def generate(engine: httpx.Client, body: Body) -> Body:
    response = engine.post("/inference/v1/generate", json=body)
    assert response.status_code == 200, response.text
    answer: Body = response.json()
    return answer


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
@pytest.mark.parametrize("color", PALETTE)
def test_the_answer_is_the_color_of_the_picture(
    engine: httpx.Client,
    body: MakeBody,
    picture: Picture,
    answer_text: Callable[[Body], str],
    color: str,
    image_format: str,
) -> None:
    assert answer_text(generate(engine, body([picture(color, image_format=image_format)]))) == color


def test_the_answer_to_a_question_without_an_image_names_all_colors_in_order(
    engine: httpx.Client, body: MakeBody, picture: Picture, answer_text: Callable[[Body], str]
) -> None:
    shown = [picture(color) for color in ("blue", "red", "red", "cyan")]
    assert answer_text(generate(engine, body(shown, question="All of them?"))) == "blue red red cyan"
    assert answer_text(generate(engine, body(shown[::-1], question="All of them?"))) == "cyan red red blue"
    assert answer_text(generate(engine, body(shown))) == "cyan"


def test_the_prompt_is_expanded_by_the_size_of_each_image(
    engine: httpx.Client, body: MakeBody, tokenizer: FastTokenizer
) -> None:
    def blank(width: int, height: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (width, height), PALETTE["red"]).save(file, "png")
        return file.getvalue()

    request = body([blank(32, 32), blank(256, 64), blank(800, 600)])
    answer = generate(engine, request)
    pad = tokenizer.token_id("<|image_pad|>")
    ranges = answer["mm_placeholders"]["image"]
    assert [entry["length"] for entry in ranges] == [64, 64, 475]
    expanded = answer["prompt_token_ids"]
    covered = {index for entry in ranges for index in range(entry["offset"], entry["offset"] + entry["length"])}
    assert covered == {index for index, token in enumerate(expanded) if token == pad}
    for entry in reversed(ranges):
        expanded[entry["offset"] : entry["offset"] + entry["length"]] = [pad]
    assert expanded == request["token_ids"]
    assert answer["usage"]["prompt_tokens"] == len(request["token_ids"]) + 64 + 64 + 475 - 3


def test_the_layout_of_an_image_follows_its_exif_orientation(engine: httpx.Client, body: MakeBody) -> None:
    image = Image.new("RGB", (960, 320), PALETTE["green"])
    image.paste(PALETTE["purple"], (0, 0, 480, 320))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "jpeg", exif=exif)
    turned = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_270).save(turned, "png")
    lengths = [
        generate(engine, body([data.getvalue()]))["mm_placeholders"]["image"][0]["length"] for data in (file, turned)
    ]
    assert lengths == [300, 300]


def test_a_prompt_without_images_is_not_expanded(engine: httpx.Client, body: MakeBody) -> None:
    request = body(question="Hello?")
    answer = generate(engine, request)
    assert answer["prompt_token_ids"] == request["token_ids"]
    assert answer["mm_placeholders"] is None
    assert answer["request_id"].startswith("generate-tokens-")


def test_the_expanded_prompt_is_returned_only_on_demand(engine: httpx.Client, body: MakeBody, picture: Picture) -> None:
    request = body([picture("red")])
    del request["return_token_ids"]
    answer = generate(engine, request)
    assert answer["prompt_token_ids"] is None
    assert answer["mm_placeholders"] is None


def test_files_are_read_again_for_every_request(
    engine: httpx.Client, body: MakeBody, picture: Picture, media_dir: Path, answer_text: Callable[[Body], str]
) -> None:
    file = media_dir / "it changes.png"
    for color in ("red", "blue"):
        file.write_bytes(picture(color))
        request = body([picture(color)])
        request["content_parts"][0]["url"] = file.as_uri()
        assert answer_text(generate(engine, request)) == color


def test_an_answer_ends_with_the_end_token_and_has_the_weight_version(
    engine: httpx.Client, body: MakeBody, picture: Picture, tokenizer: FastTokenizer
) -> None:
    [choice] = generate(engine, body([picture("red")], max_tokens=2))["choices"]
    assert choice["token_ids"] == [*tokenizer.encode("red"), tokenizer.eos_token_id]
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] is None
    assert choice["weight_versions"] == [{"version": "7", "start": 0, "end": 2}]


def test_max_tokens_cuts_an_answer(engine: httpx.Client, body: MakeBody, picture: Picture) -> None:
    answer = generate(engine, body([picture("red")] * 3, question="All?", max_tokens=2))
    [choice] = answer["choices"]
    assert len(choice["token_ids"]) == len(choice["logprobs"]["content"]) == 2
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2


def test_any_stop_token_ends_an_answer_and_is_part_of_it(
    engine: httpx.Client, body: MakeBody, picture: Picture, tokenizer: FastTokenizer
) -> None:
    [blue] = tokenizer.encode(" blue")
    shown = [picture("red"), picture("blue"), picture("green")]
    [choice] = generate(engine, body(shown, question="All?", stop_token_ids=[blue]))["choices"]
    assert choice["token_ids"] == [*tokenizer.encode("red"), blue]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", blue)


def test_an_answer_ends_at_the_end_of_the_context(body: MakeBody, tokenizer: FastTokenizer) -> None:
    request = body(question="Hello?")
    room = len(request["token_ids"]) + 5
    with EmbeddedServer(EmbeddedSettings(policy=named(LongAnswer), max_model_len=room)) as url:
        with httpx.Client(base_url=url) as client:
            [choice] = generate(client, request)["choices"]
            assert len(choice["token_ids"]) == 5
            assert choice["finish_reason"] == "length"
            assert client.get("/v1/models").json()["data"][0]["max_model_len"] == room


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        (Broken, "RuntimeError: no idea"),
        (Lazy, "JSONDecodeError: "),
        (Ambiguous, "'red red' begins with the tokens of the candidate 'red'"),
    ],
)
def test_a_policy_that_fails_is_an_error_of_the_server_with_its_line(
    body: MakeBody, kind: type, complaint: str
) -> None:
    with EmbeddedServer(EmbeddedSettings(policy=named(kind))) as url:
        response = httpx.post(f"{url}/inference/v1/generate", json=body())
    assert response.status_code == 500
    error = response.json()["error"]
    assert complaint in error["message"]
    assert f"{named(kind)} failed at {__file__}:{line_of(kind)}: " in error["message"]
    assert error["type"] == "InternalServerError"


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_banned_token_is_not_sampled_and_does_not_count_in_the_logprobs(
    body: MakeBody, tokenizer: FastTokenizer, answer_text: Callable[[Body], str], temperature: float
) -> None:
    bans = {str(tokenizer.token_id("<|image_pad|>")): -100.0}
    with EmbeddedServer(EmbeddedSettings(policy=named(LikesPlaceholders))) as url, httpx.Client(base_url=url) as client:
        answer = generate(client, body(temperature=temperature, logit_bias=bans))
    assert answer_text(answer) in ("red", "blue")
    [entry, _] = answer["choices"][0]["logprobs"]["content"]
    assert entry["logprob"] == pytest.approx(math.log(0.5) if temperature else 0.0)


def test_the_error_of_a_policy_is_logged(body: MakeBody) -> None:
    with EmbeddedServer(EmbeddedSettings(policy=named(Broken))) as url, structlog.testing.capture_logs() as lines:
        httpx.post(f"{url}/inference/v1/generate", json=body())
    [line] = lines
    assert (line["log_level"], str(line["exc_info"])) == ("error", "no idea")


def test_an_error_inside_the_engine_is_in_the_answer_and_in_the_log(
    body: MakeBody, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RequestReader, "read", lambda *_: 1 / 0)
    with EmbeddedServer(EmbeddedSettings()) as url, structlog.testing.capture_logs() as lines:
        response = httpx.post(f"{url}/inference/v1/generate", json=body())
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "ZeroDivisionError: division by zero"
    [line] = lines
    assert line["path"] == "/inference/v1/generate"
    assert isinstance(line["exc_info"], ZeroDivisionError)


def test_the_same_request_with_the_same_seed_gets_the_same_answer(
    engine: httpx.Client, body: MakeBody, picture: Picture
) -> None:
    shown = [picture("red", image_format="png")] * 8
    requests = [body(shown, question="All?", temperature=2.0, seed=seed) for seed in (5, 5, 6)]
    first, again, other = (generate(engine, request)["choices"] for request in requests)
    assert first == again
    assert first != other


def test_at_temperature_one_a_tenth_of_the_answers_is_wrong_and_the_logprobs_agree(
    engine: httpx.Client, body: MakeBody, picture: Picture, answer_text: Callable[[Body], str]
) -> None:
    shown = [picture("green", image_format="jpeg")] * 8
    right: list[float] = []
    wrong: list[float] = []
    for seed in range(60):
        answer = generate(engine, body(shown, question="All?", temperature=1.0, seed=seed))
        logprobs = [entry["logprob"] for entry in answer["choices"][0]["logprobs"]["content"]]
        for word, logprob in zip(answer_text(answer).split(), logprobs[:-1], strict=True):
            (right if word == "green" else wrong).append(logprob)
    assert right == pytest.approx([math.log(0.9)] * len(right))
    assert wrong == pytest.approx([math.log(0.1 / 7)] * len(wrong))
    # 480 draws at one in ten: 48 expected, with a standard deviation of 6.6
    assert 28 <= len(wrong) <= 68


def test_top_logprobs_begin_with_the_sampled_token(engine: httpx.Client, body: MakeBody, picture: Picture) -> None:
    request = body([picture("red")], temperature=1.0, seed=1, logprobs=3)
    first, end = generate(engine, request)["choices"][0]["logprobs"]["content"]
    assert len(first["top_logprobs"]) == 3
    assert first["top_logprobs"][0] == {key: first[key] for key in ("token_id", "logprob", "rank")}
    assert len({entry["token_id"] for entry in first["top_logprobs"]}) == 3
    assert end["top_logprobs"] == [{"token_id": end["token_id"], "logprob": 0.0, "rank": 1}]


def test_an_abort_ends_a_request_with_the_tokens_so_far(body: MakeBody, tokenizer: FastTokenizer) -> None:
    settings = EmbeddedSettings(policy=named(LongAnswer), token_latency_ms=3_600_000)
    with (
        EmbeddedServer(settings) as url,
        httpx.Client(base_url=url, timeout=30) as client,
        ThreadPoolExecutor() as pool,
    ):
        running = pool.submit(generate, client, {**body(), "request_id": "slow"})
        while not running.done():
            aborted = client.post(
                "/inference/v1/abort_requests", json={"request_ids": ["generate-tokens-slow", "gone"]}
            )
            assert aborted.status_code == 200
        [choice] = running.result()["choices"]
    assert choice["finish_reason"] == "abort"
    assert choice["token_ids"] == tokenizer.encode(" red")
    assert len(choice["logprobs"]["content"]) == 1
    assert choice["weight_versions"] == [{"version": "0", "start": 0, "end": 1}]


def test_the_id_of_a_running_request_is_refused(body: MakeBody) -> None:
    settings = EmbeddedSettings(policy=named(LongAnswer), latency_ms=3_600_000)
    request = {**body(), "request_id": "twin"}
    with (
        EmbeddedServer(settings) as url,
        httpx.Client(base_url=url, timeout=30) as client,
        ThreadPoolExecutor() as pool,
    ):
        twins = [pool.submit(client.post, "/inference/v1/generate", json=request) for _ in range(2)]
        wait(twins, timeout=30, return_when=FIRST_COMPLETED)
        while not all(twin.done() for twin in twins):
            client.post("/inference/v1/abort_requests", json={"request_ids": ["generate-tokens-twin"]})
        answers = sorted((twin.result() for twin in twins), key=lambda answer: answer.status_code)
    assert [answer.status_code for answer in answers] == [200, 400]
    assert answers[0].json()["choices"][0]["token_ids"] == []
    assert "already running" in answers[1].json()["error"]["message"]


def test_the_engine_reports_its_model_health_and_version(engine: httpx.Client) -> None:
    [model] = engine.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == ("tiny-qwen3-vl", 2048)
    assert engine.get("/health").status_code == 200
    assert engine.get("/version").json()["version"].startswith("rollout-")
