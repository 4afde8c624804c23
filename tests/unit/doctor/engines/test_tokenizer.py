"""Compares our tokenizer with an engine that has a changed copy of it; every difference must be found and named."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import anyio
import orjson
import pytest
from tokenizers import Tokenizer

from renderers_adapter.tokenizer import FastTokenizer, load_tokenizer
from rollout.doctor.engines import tokenizer_probes, tokenizer_requests
from rollout.doctor.engines.tokenizer import check_tokens, tokens_fix
from rollout.doctor.engines.under_test import (
    CheckFailed,
    CheckNotMade,
    CheckPartlyMade,
    EngineUnderTest,
    NothingToCheck,
)
from rollout.engine.errors import EngineMismatch, EngineTimeout
from rollout.engine.transport import EngineTransport
from tests.unit.engine.vllm_contract import VERSIONS, Contract

_SHIPPED = Path(__file__).parents[4] / "rollout" / "serving" / "tiny_qwen3_vl" / "tokenizer.json"
_NFC = {"type": "NFC"}
_SWEPT_CHARACTERS = tokenizer_probes._SWEPT_CHARACTERS

Change = Callable[[dict[str, Any]], object]


class _EngineWithTokenizer(EngineTransport):
    """Answers as vLLM does, with a tokenizer of its own.

    Attributes:
        tokenizer: the engine's tokenizer.
        routes: the routes that exist.
        owner: the owner of the model in `/v1/models`.
        requests: the routes that were asked, with the body of the request.
    """

    def __init__(self, tokenizer: Tokenizer, *routes: str, owner: str = "vllm") -> None:
        self.tokenizer = tokenizer
        self.routes = ("/v1/models", *(routes or ("/tokenize", "/detokenize")))
        self.owner = owner
        self.requests: list[tuple[str, bytes]] = []

    async def send(self, method: str, url: str, body: bytes, *, session_id: str | None = None) -> tuple[int, bytes]:
        route = url.removeprefix("http://engine")
        self.requests.append((route, body))
        if route not in self.routes:
            return 404, b'{"detail":"Not Found"}'
        return 200, orjson.dumps(self.answer(route, orjson.loads(body or b"{}")))

    def answer(self, route: str, body: dict[str, Any]) -> object:
        match route:
            case "/v1/models":
                return {"data": [{"id": "tiny", "owned_by": self.owner}]}
            case "/tokenize":
                return {"tokens": self.ids(body["prompt"])}
            case "/v1/completions/render":
                assert all(len(self.ids(prompt)) < 1024 for prompt in body["prompt"])
                return [{"token_ids": self.ids(prompt)} for prompt in body["prompt"]]
            case _:
                return {"prompt": self.tokenizer.decode(body["tokens"], skip_special_tokens=False)}

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


class _Namespace:
    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


def _engine(transport: EngineTransport, own: FastTokenizer) -> EngineUnderTest:
    adapter, client = _Namespace(tokenizer=own), _Namespace(max_model_len=1024)
    config = _Namespace(engine=_Namespace(api_key_env="LAB_KEY"))
    engine = _Namespace(
        url="http://engine", model="tiny", transport=transport, adapter=adapter, client=client, config=config
    )
    return cast(EngineUnderTest, engine)


def _changed(*changes: Change) -> Tokenizer:
    content = json.loads(_SHIPPED.read_text("utf-8"))
    for change in changes:
        change(content)
    return Tokenizer.from_str(json.dumps(content))


def _fast(*changes: Change) -> FastTokenizer:
    return FastTokenizer(_changed(*changes), name_or_path="ours")


async def _failure(change: Change, *, both: Change = lambda content: None, routes: tuple[str, ...] = ()) -> str:
    engine = _engine(_EngineWithTokenizer(_changed(both, change), *routes), _fast(both))
    with pytest.raises(CheckFailed) as failure:
        await check_tokens(engine)
    assert failure.value.fix is not None
    assert failure.value.fix.startswith("set model.path to the directory of the checkpoint that the engine serves")
    return str(failure.value)


@pytest.fixture(autouse=True)
def _few_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_probes, "_SWEPT_CHARACTERS", (range(0x20, 0x250),))


def _added(content: dict[str, Any], text: str) -> dict[str, Any]:
    return next(token for token in content["added_tokens"] if token["content"] == text)


def _swap(first: str, second: str) -> Change:
    def change(content: dict[str, Any]) -> None:
        first_token, second_token = _added(content, first), _added(content, second)
        first_token["content"], second_token["content"] = second, first

    return change


def _set(text: str, **settings: bool) -> Change:
    return lambda content: _added(content, text).update(settings)


def _add(text: str) -> Change:
    def change(content: dict[str, Any]) -> None:
        last = content["added_tokens"][-1]
        content["added_tokens"].append({**last, "id": last["id"] + 1, "content": text})

    return change


def _remove(text: str) -> Change:
    return lambda content: content["added_tokens"].remove(_added(content, text))


def _set_split(pattern: str) -> Change:
    def change(content: dict[str, Any]) -> None:
        content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern

    return change


def _swap_merges(first: int, second: int) -> Change:
    def change(content: dict[str, Any]) -> None:
        merges = content["model"]["merges"]
        merges[first], merges[second] = merges[second], merges[first]

    return change


async def test_an_equal_tokenizer_is_reported_with_the_number_of_compared_tokens() -> None:
    transport = _EngineWithTokenizer(_changed())
    finding = await check_tokens(_engine(transport, load_tokenizer(_SHIPPED)))
    assert finding.startswith("the same ids for texts with 20 of 20 added tokens, 952 of 1,004 other tokens and ")
    assert finding.endswith(
        " characters; 12 others have the same texts; 40 parts of characters cannot be compared by their text; 1,024 "
        "ids that we do not use have no text there"
    )
    assert len(transport.requests) < 10
    assert max(len(body) for _, body in transport.requests) < 1_000_000


@pytest.mark.parametrize(
    ("first", "second"),
    [("<tool_call>", "<think>"), ("<|box_start|>", "<|quad_start|>"), ("<|image_pad|>", "<|video_pad|>")],
)
async def test_swapped_ids_of_added_tokens_are_named(first: str, second: str) -> None:
    message = await _failure(_swap(first, second))
    lower, higher = sorted((first, second), key=load_tokenizer(_SHIPPED).token_id)
    assert f"{lower!r} (in " in message
    assert f"({lower!r} in ours) in our tokenizer, and " in message
    assert f"({higher!r} in ours) in the engine's" in message


@pytest.mark.parametrize("index", [0, 100, 400, 747])
async def test_a_missing_merge_is_found(index: int) -> None:
    assert "the engine has another tokenizer" in await _failure(lambda content: content["model"]["merges"].pop(index))


@pytest.mark.parametrize(("first", "second"), [(1, 2), (460, 458), (96, 355)])  # such as `r e` and `e n`
async def test_merges_in_another_order_are_found(first: int, second: int) -> None:
    assert "the engine has another tokenizer" in await _failure(_swap_merges(first, second))


async def test_a_missing_added_token_is_named() -> None:
    message = await _failure(_remove("</think>"))
    assert "'</think>" in message
    assert "('</' in ours)" in message


async def test_an_additional_added_token_is_found_by_its_id() -> None:
    message = await _failure(_add("<a_token_that_nobody_knows>"))
    assert "the text of 1024 (no token of ours) is '<a_token_that_nobody_knows>' in the engine's" in message


async def test_an_additional_token_of_a_well_known_model_is_found_without_detokenize() -> None:
    message = await _failure(_add("<|eot_id|>"), routes=("/tokenize",))
    assert "'<|eot_id|>' (in " in message
    assert "1024 (no token of ours) in the engine's" in message


@pytest.mark.parametrize("normalizer", [{"type": "NFC"}, {"type": "NFKC"}, {"type": "NFD"}, {"type": "Lowercase"}])
async def test_another_normalizer_is_found(normalizer: dict[str, str]) -> None:
    assert "the engine has another tokenizer" in await _failure(lambda content: content.update(normalizer=normalizer))


async def test_a_missing_normalizer_is_found() -> None:
    message = await _failure(
        lambda content: content.update(normalizer=None), both=lambda content: content.update(normalizer=_NFC)
    )
    assert "the engine has another tokenizer" in message


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}]+"),
        (r"\s+(?!\S)|", ""),
        (r"[^\r\n\p{L}\p{N}]?\p{L}+", r"(?i:'s|'t)|\p{L}+"),
    ],
)
async def test_another_pre_tokenizer_is_found(pattern: str, replacement: str) -> None:
    shipped = json.loads(_SHIPPED.read_text("utf-8"))["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    assert pattern in shipped
    assert "the engine has another tokenizer" in await _failure(_set_split(shipped.replace(pattern, replacement)))


@pytest.mark.parametrize("setting", ["lstrip", "rstrip", "single_word"])
async def test_another_setting_of_an_added_token_is_named(setting: str) -> None:
    assert "<|im_start|>" in await _failure(_set("<|im_start|>", **{setting: True}))


@pytest.mark.parametrize("normalizer", [{"type": "NFC"}, {"type": "NFKC"}, {"type": "Lowercase"}])
async def test_a_normalized_added_token_is_found(normalizer: dict[str, str]) -> None:
    message = await _failure(
        _set("<|im_start|>", normalized=True), both=lambda content: content.update(normalizer=normalizer)
    )
    assert "<|im_start|>" in message


def _rename(token: str, new_name: str) -> Change:
    return lambda content: content["model"]["vocab"].update({new_name: content["model"]["vocab"].pop(token)})


def _make_unreachable(content: dict[str, Any]) -> None:
    _rename("".join(content["model"]["merges"].pop()), "unreachable")(content)


async def test_a_token_that_no_text_makes_is_compared_by_its_text() -> None:
    message = await _failure(_rename("unreachable", "otherword"), both=_make_unreachable)
    assert "the text of 1003 ('unreachable' in ours) is 'otherword' in the engine's" in message


async def test_an_engine_behind_a_proxy_is_asked_to_render_texts_that_fit_into_its_context() -> None:
    transport = _EngineWithTokenizer(_changed(), "/v1/completions/render")
    with pytest.raises(CheckPartlyMade, match="20 of 20 added tokens"):
        await check_tokens(_engine(transport, load_tokenizer(_SHIPPED)))


async def test_without_detokenize_the_check_is_only_partly_made() -> None:
    with pytest.raises(CheckPartlyMade) as reason:
        await check_tokens(_engine(_EngineWithTokenizer(_changed(), "/tokenize"), load_tokenizer(_SHIPPED)))
    assert str(reason.value).endswith(
        " characters. 52 other tokens and 1,024 ids that we do not use were not compared, because this server has no "
        "/detokenize; let the proxy pass it"
    )


async def test_a_difference_is_found_behind_a_proxy() -> None:
    assert "'<think>'" in await _failure(_swap("<tool_call>", "<think>"), routes=("/v1/completions/render",))


async def test_additional_tokens_are_not_ruled_out_if_the_engine_fails_for_unknown_ids() -> None:
    class _Failing(_EngineWithTokenizer):
        async def send(self, method: str, url: str, body: bytes, *, session_id: str | None = None) -> tuple[int, bytes]:
            if url.endswith("/detokenize") and 1024 in orjson.loads(body)["tokens"]:
                return 500, b"KeyError: 1024"
            return await super().send(method, url, body, session_id=session_id)

    with pytest.raises(CheckPartlyMade, match="Whether the engine has additional tokens was not seen"):
        await check_tokens(_engine(_Failing(_changed()), load_tokenizer(_SHIPPED)))


async def test_tokens_that_no_text_makes_and_parts_of_characters_are_counted_separately() -> None:
    finding = await check_tokens(_engine(_EngineWithTokenizer(_changed(_make_unreachable)), _fast(_make_unreachable)))
    assert "; 13 others have the same texts; 40 parts of characters cannot be compared by their text; " in finding


def test_every_assigned_character_that_is_not_private_is_swept() -> None:
    assigned = {one for one in range(0x20, 0x110000) if unicodedata.category(chr(one)) not in ("Cn", "Co", "Cs")}
    assert assigned.difference(*_SWEPT_CHARACTERS) == set()


async def test_without_a_route_nothing_is_proven() -> None:
    with pytest.raises(CheckNotMade, match=r"neither /tokenize nor /v1/completions/render"):
        await check_tokens(_engine(_EngineWithTokenizer(_changed(), "/none"), load_tokenizer(_SHIPPED)))


async def test_our_own_engine_has_no_tokenizer() -> None:
    engine = _engine(_EngineWithTokenizer(_changed(), owner="rollout"), load_tokenizer(_SHIPPED))
    with pytest.raises(NothingToCheck, match="takes tokens only"):
        await check_tokens(engine)


async def test_an_engine_that_does_not_answer_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    class _Silent(_EngineWithTokenizer):
        async def send(self, method: str, url: str, body: bytes, *, session_id: str | None = None) -> tuple[int, bytes]:
            if url.endswith("/tokenize"):
                await anyio.sleep_forever()
            return await super().send(method, url, body, session_id=session_id)

    monkeypatch.setattr(tokenizer_requests, "_ANSWER_TIMEOUT", 0.01)
    with pytest.raises(EngineTimeout, match=r"/tokenize did not answer within 0\.01 s"):
        await check_tokens(_engine(_Silent(_changed()), load_tokenizer(_SHIPPED)))


@pytest.mark.parametrize(
    ("route", "answer"),
    [
        ("/tokenize", {"ids": []}),
        ("/tokenize", {"tokens": "abc"}),
        ("/tokenize", {"tokens": [[1], {"a": 2}]}),
        ("/tokenize", {"tokens": [True]}),
        ("/tokenize", {"tokens": None}),
        ("/tokenize", [1]),
        ("/detokenize", {"prompt": 17}),
        ("/detokenize", {"text": "a"}),
        ("/v1/completions/render", {"token_ids": "abc"}),
        ("/v1/completions/render", [{"token_ids": ["1"]}]),
        ("/v1/completions/render", None),
    ],
)
async def test_an_answer_in_an_unknown_form_is_no_difference(route: str, answer: object) -> None:
    class _Strange(_EngineWithTokenizer):
        def answer(self, asked_route: str, body: dict[str, Any]) -> object:
            return answer if asked_route == route else super().answer(asked_route, body)

    routes = (route,) if route == "/v1/completions/render" else ()
    engine = _engine(_Strange(_changed(), *routes), load_tokenizer(_SHIPPED))
    with pytest.raises(EngineMismatch, match=f"{route} answers in an unknown form: ") as error:
        await check_tokens(engine)
    fix = tokens_fix(engine, error.value)
    assert fix is not None
    assert fix.endswith(
        "curl http://engine/tokenize -H 'Content-Type: application/json' -H \"Authorization: Bearer $LAB_KEY\" "
        """-d '{"model":"tiny","prompt":"a"}'"""
    )


async def test_a_proxy_that_refuses_large_bodies_is_named() -> None:
    class _SmallBodies(_EngineWithTokenizer):
        async def send(self, method: str, url: str, body: bytes, *, session_id: str | None = None) -> tuple[int, bytes]:
            if len(body) > 1000:
                return 413, b"<html>Request Entity Too Large</html>"
            return await super().send(method, url, body, session_id=session_id)

    with pytest.raises(CheckFailed, match="a proxy before http://engine/tokenize refused a body of ") as failure:
        await check_tokens(_engine(_SmallBodies(_changed()), load_tokenizer(_SHIPPED)))
    assert failure.value.fix == "let the proxy accept bodies of 1 MB"


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_vllm_knows_what_is_sent_to_its_tokenizer(version: str) -> None:
    transport = _EngineWithTokenizer(_changed())
    await check_tokens(_engine(transport, load_tokenizer(_SHIPPED)))
    contract = Contract.of_version(version)
    model = contract.model_of("POST /tokenize", "request")
    bodies = [body for route, body in transport.requests if route == "/tokenize"]
    assert bodies
    assert [problem for body in bodies for problem in contract.problems(orjson.loads(body), model)] == []
