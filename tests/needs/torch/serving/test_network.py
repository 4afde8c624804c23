"""The network engine: its log-probs are those of a plain forward, however requests are batched."""

import importlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

torch: Any = importlib.import_module("torch")

Body = dict[str, Any]
MakeBody = Callable[..., Body]
Start = Callable[..., Any]
Plain = Callable[..., Any]
CLOSE = 1e-5


def largest_difference(answer: Body, sampling: Body, logits: Any) -> float:
    """Return the largest difference between the log-probs of an answer and those of the logits."""
    [choice] = answer["choices"]
    if (allowed := sampling.get("allowed_token_ids")) is not None:
        forbidden = torch.ones(logits.shape[-1], dtype=torch.bool)
        forbidden[allowed] = False
        logits = logits.masked_fill(forbidden, float("-inf"))
    for token, bias in (sampling.get("logit_bias") or {}).items():
        assert bias == -100.0
        logits[:, int(token)] = float("-inf")
    expected = (logits / (sampling["temperature"] or 1.0)).log_softmax(-1)
    entries = choice["logprobs"]["content"]
    assert [entry["token_id"] for entry in entries] == choice["token_ids"]
    return float(
        max(abs(expected[at, token].item() - entries[at]["logprob"]) for at, token in enumerate(choice["token_ids"]))
    )


@pytest.mark.parametrize("family", ["qwen3-vl", "qwen2.5-vl"])
def test_logprobs_are_those_of_a_plain_forward_however_requests_are_batched(
    world: Start,
    checkpoint: Callable[..., Path],
    body: MakeBody,
    pictures: list[bytes],
    plain_logits: Plain,
    family: str,
) -> None:
    engine = world(checkpoint(family))
    shown = [pictures[: number % 4] * (1 + number % 2) for number in range(16)]
    requests = [
        body(
            images,
            "Which? " * (number % 5),
            seed=number,
            max_tokens=1 + number % 9,
            temperature=(1.0, 0.7, 0)[number % 3],
        )
        for number, images in enumerate(shown)
    ]
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(engine.generate, requests))
    differences = []
    for request, images, answer in zip(requests, shown, answers, strict=True):
        assert len(answer["choices"][0]["token_ids"]) == request["sampling_params"]["max_tokens"]
        logits = plain_logits(engine.directory, images, answer)
        differences.append(largest_difference(answer, request["sampling_params"], logits))
    print(f"{family}: largest difference of log-probs over {len(requests)} requests: {max(differences):.1e}")
    assert max(differences) < CLOSE


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_banned_tokens_are_never_sampled_and_logprobs_are_those_without_them(
    world: Start, body: MakeBody, pictures: list[bytes], plain_logits: Plain, temperature: float
) -> None:
    engine = world()
    likeliest = engine.generate(body(pictures, temperature=0, max_tokens=1))["choices"][0]["token_ids"]
    media = [engine.tokenizer.token_id(token) for token in ("<|image_pad|>", "<|video_pad|>", "<|vision_pad|>")]
    bans = {str(token): -100.0 for token in (*likeliest, *media)}
    request = body(pictures, temperature=temperature, seed=1, max_tokens=40, allowed_token_ids=None, logit_bias=bans)
    answer = engine.generate(request)
    assert not set(map(str, answer["choices"][0]["token_ids"])) & set(bans)
    logits = plain_logits(engine.directory, pictures, answer)
    assert largest_difference(answer, request["sampling_params"], logits) < CLOSE


def test_an_answer_does_not_depend_on_other_requests(world: Start, body: MakeBody, pictures: list[bytes]) -> None:
    engine = world()
    requests = [body(pictures[: number % 4], seed=number) for number in range(12)]
    alone = [engine.generate(request)["choices"][0]["token_ids"] for request in requests]
    with ThreadPoolExecutor(len(requests)) as pool:
        together = [answer["choices"][0]["token_ids"] for answer in pool.map(engine.generate, requests)]
    assert together == alone
    assert len({tuple(tokens) for tokens in alone}) > 1


def test_tokens_are_drawn_as_often_as_their_logprobs_say(world: Start, body: MakeBody, pictures: list[bytes]) -> None:
    engine = world()
    first, second = body()["sampling_params"]["allowed_token_ids"][:2]
    counts = {first: 0, second: 0}
    probability: dict[int, float] = {}
    allowed = [first, second]
    requests = [
        body(pictures[:1], seed=seed, max_tokens=1, temperature=3.0, allowed_token_ids=allowed) for seed in range(300)
    ]
    with ThreadPoolExecutor(16) as pool:
        for answer in pool.map(engine.generate, requests):
            [entry] = answer["choices"][0]["logprobs"]["content"]
            counts[entry["token_id"]] += 1
            probability[entry["token_id"]] = math.exp(entry["logprob"])
    assert sum(probability.values()) == pytest.approx(1.0, abs=1e-5)
    expected = 300 * probability[first]
    # Four standard deviations; the seeds make every run the same.
    assert abs(counts[first] - expected) < 4 * math.sqrt(expected * probability[second])


def test_temperature_zero_takes_the_likeliest_token_and_ranks_are_reported(
    world: Start, body: MakeBody, pictures: list[bytes]
) -> None:
    engine = world()
    answer = engine.generate(body(pictures, temperature=0, logprobs=3))
    for entry in answer["choices"][0]["logprobs"]["content"]:
        assert entry["rank"] == 1
        assert entry["logprob"] == max(other["logprob"] for other in entry["top_logprobs"])
        assert len(entry["top_logprobs"]) == 3
    drawn = engine.generate(body(pictures, temperature=5.0, seed=4, logprobs=1))
    assert any(entry["rank"] > 1 for entry in drawn["choices"][0]["logprobs"]["content"])


def test_a_distinct_image_is_encoded_once_until_the_weights_change(
    world: Start, body: MakeBody, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = importlib.import_module("rollout.serving.network.vision")
    encoded: list[str] = []
    compute = images.ImageEncoder._compute

    def counting(encoder: Any, missing: Sequence[Any]) -> Any:
        encoded.extend(picture.image_hash for picture in missing)
        return compute(encoder, missing)

    monkeypatch.setattr(images.ImageEncoder, "_compute", counting)
    engine = world()
    requests = [body(pictures[: 1 + number % 3] * 2, seed=number, max_tokens=1) for number in range(12)]
    with ThreadPoolExecutor(len(requests)) as pool:
        list(pool.map(engine.generate, requests))
    assert len(encoded) == len(set(encoded)) == 3
    engine.push("2")
    engine.generate(body(pictures[:1]))
    assert len(encoded) == 4


def test_new_weights_answer_after_a_push_and_report_their_version(
    world: Start, checkpoint: Callable[..., Path], body: MakeBody, pictures: list[bytes], plain_logits: Plain
) -> None:
    engine, other = world(), checkpoint(seed=1)
    request = body(pictures, seed=3)
    before = engine.generate(request)
    engine.push("2", weights_path=str(other))
    after = engine.generate(request)
    assert (
        largest_difference(before, request["sampling_params"], plain_logits(engine.directory, pictures, before)) < CLOSE
    )
    assert largest_difference(after, request["sampling_params"], plain_logits(other, pictures, after)) < CLOSE
    spans = [answer["choices"][0]["weight_versions"] for answer in (before, after)]
    assert spans == [[{"version": version, "start": 0, "end": 8}] for version in ("1", "2")]


def test_kept_requests_continue_with_the_new_weights_and_report_where(
    world: Start, checkpoint: Callable[..., Path], body: MakeBody, pictures: list[bytes]
) -> None:
    engine = world()
    requests = [body(pictures[:number], seed=number, max_tokens=60) for number in range(4)]
    with ThreadPoolExecutor(len(requests)) as pool:
        in_flight = [pool.submit(engine.generate, request) for request in requests]
        version = 1
        while not all(one.done() for one in in_flight):
            version += 1
            engine.push(str(version), "keep", weights_path=str(checkpoint(seed=version % 2)))
        answers = [one.result()["choices"][0] for one in in_flight]
    spans = [[(span["start"], span["end"]) for span in answer["weight_versions"]] for answer in answers]
    assert max(map(len, spans)) > 1
    for found in spans:
        assert [start for start, _ in found[1:]] == [end for _, end in found[:-1]]
        assert (found[0][0], found[-1][1]) == (0, 60)


def test_an_abort_does_not_disturb_other_requests(
    world: Start, body: MakeBody, pictures: list[bytes], plain_logits: Plain
) -> None:
    engine = world()
    request = body(pictures[:2], seed=5, max_tokens=40)
    endless = {**body(pictures, "a longer question than the other one", max_tokens=30_000), "request_id": "endless"}
    with ThreadPoolExecutor(2) as pool:
        aborted_request, staying = pool.submit(engine.generate, endless), pool.submit(engine.generate, request)
        while not aborted_request.done():
            engine.client.post("/inference/v1/abort_requests", json={"request_ids": ["generate-tokens-endless"]})
        assert aborted_request.result()["choices"][0]["finish_reason"] == "abort"
        answer = staying.result()
    assert (
        largest_difference(answer, request["sampling_params"], plain_logits(engine.directory, pictures[:2], answer))
        < CLOSE
    )


@pytest.mark.parametrize(
    "fault", ["model.Network.prefill", "model.Network.decode", "decode_batch.DecodeBatch.keep_rows"]
)
def test_an_error_of_the_network_ends_only_the_requests_that_met_it(
    world: Start, body: MakeBody, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    engine = world()
    with monkeypatch.context() as patch:
        patch.setattr(f"rollout.serving.network.{fault}", lambda *_: 1 / 0)
        with structlog.testing.capture_logs() as lines:
            failed = engine.client.post("/inference/v1/generate", json=body())
    assert failed.status_code == 500
    assert "ZeroDivisionError: division by zero" in failed.json()["error"]["message"]
    assert [type(line["exc_info"]) for line in lines] == [ZeroDivisionError]
    assert engine.generate(body())["choices"][0]["finish_reason"] == "length"
