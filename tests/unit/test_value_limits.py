"""Small objects with huge contents: each value counts as often as it is reached, and too many are refused."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from rollout.config.sampling import SamplingError, check_sampling
from rollout.images import ImageError, ImagePolicy, prepare_images
from rollout.records.messages import CanonicalMessageCache, MessageError, canonicalise, require_bounded
from rollout.records.tools import require_tools
from rollout.records.wrong_types import show_value
from rollout.value_limits import MAX_CHARACTERS, MAX_DEPTH, OutOfBoundsError, TooMuchTextError, ValueCounter


def graph(wrap: Callable[[Any], Any], levels: int = 14, times: int = 12) -> Any:
    """Return a value in which each level contains the next one twelve times."""
    found: Any = "a leaf"
    for _ in range(levels):
        found = wrap([found] * times)
    return found


def cycle() -> list[Any]:
    found: list[Any] = []
    found.append({"content": found})
    return found


@dataclass
class Fields:
    inner: Any


WRAPS: dict[str, Callable[[Any], Any]] = {
    "lists": list,
    "tuples": tuple,
    "dicts": lambda inner: {str(at): value for at, value in enumerate(inner)},
    "parts": lambda inner: {"type": "tool_result", "content": inner},
    "dataclasses": Fields,
    "objects": lambda inner: type("Part", (), {"content": inner})(),
    "enums": lambda inner: Enum("Holder", {"ONE": inner}).ONE,  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=list(WRAPS))
def test_a_graph_of_few_objects_is_refused(wrap: Callable[[Any], Any]) -> None:
    with pytest.raises(OutOfBoundsError, match="holds more than 131,072 values"):
        ValueCounter().add(graph(wrap))


def test_a_value_that_contains_itself_is_refused() -> None:
    with pytest.raises(OutOfBoundsError, match=f"has more than {MAX_DEPTH} levels, or contains itself"):
        ValueCounter().add(cycle())


def test_deep_nesting_is_refused_and_less_is_not() -> None:
    counter = ValueCounter()
    counter.add(graph(list, MAX_DEPTH, 1))
    with pytest.raises(OutOfBoundsError, match="levels"):
        counter.add(graph(list, MAX_DEPTH + 1, 1))


@pytest.mark.parametrize("value", [["x" * 1000] * 20_000, {"k" * 1000 + str(at): 1 for at in range(20_000)}])
def test_repeated_text_is_counted_each_time(value: object) -> None:
    with pytest.raises(TooMuchTextError, match=f"more than {MAX_CHARACTERS:,} characters"):
        ValueCounter().add(value)


def test_the_error_names_the_first_message_over_the_limit() -> None:
    half = {"role": "user", "content": "x" * (MAX_CHARACTERS // 2 + 1)}
    require_bounded([half])
    with pytest.raises(TooMuchTextError):
        require_bounded([half, half])
    deep = {"role": "assistant", "content": "", "tool_calls": graph(WRAPS["dicts"])}
    with pytest.raises(MessageError, match=r"messages\[4\] holds more than 131,072 values"):
        require_bounded([{"role": "user", "content": "short"}, deep], first_index=3)


LONG = "data:" + "x" * MAX_CHARACTERS


@pytest.mark.parametrize(
    "image",
    [
        {"image": LONG},
        {"image": LONG.encode()},
        {"image_url": LONG},
        {"image_url": {"url": LONG, "detail": "low"}},
        {"type": "tool_result", "content": [{"type": "image", "image": LONG}]},
    ],
    ids=["image", "bytes", "image_url", "url", "nested"],
)
def test_an_image_does_not_count_as_text(image: dict[str, Any]) -> None:
    require_bounded([{"role": "user", "content": [image]}])


def place_in_call(value: Any) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": value}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def place_in_part(value: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": "short", **value}]}


PLACES: dict[str, Callable[[Any], Any]] = {
    "arguments": place_in_call,
    "part": place_in_part,
    "nested-part": lambda value: {"role": "user", "content": [{"type": "tool_result", "content": [value]}]},
    "url": lambda value: place_in_part({"image_url": {"url": value}}),
    "beside-the-url": lambda value: place_in_part({"image_url": {"url": "data:", "detail": value}}),
    "key-of-a-part": lambda value: place_in_part({"cache_control": value}),
    "name": lambda value: {"role": "user", "content": "short", "name": value},
    "content": lambda value: {"role": "user", "content": value},
}


@pytest.mark.parametrize("wrap", ["lists", "dicts"])
@pytest.mark.parametrize("key", ["image", "image_url"])
@pytest.mark.parametrize("place", PLACES.values(), ids=list(PLACES))
def test_a_graph_under_the_key_of_an_image_is_counted(place: Callable[[Any], Any], key: str, wrap: str) -> None:
    with pytest.raises(MessageError, match=r"messages\[0\] holds more than 131,072 values"):
        require_bounded([place({key: graph(WRAPS[wrap])})])


def test_a_key_that_no_template_reads_may_have_any_value_and_is_not_cached() -> None:
    message = {"role": "user", "content": "short", "debug": graph(list)}
    require_bounded([message])
    (canonical,) = canonicalise([message], ())
    cache = CanonicalMessageCache()
    cache.add(message, canonical)
    assert cache.known_prefix([message]) == []


@pytest.mark.parametrize("key", ["a", "image"])
def test_tools_and_sampling_keys_are_counted_too(key: str) -> None:
    parameters = {key: graph(WRAPS["dicts"])}
    with pytest.raises(MessageError, match=r"chat\(tools=…\) holds more than 131,072 values"):
        require_tools([{"type": "function", "function": {"name": "f", "parameters": parameters}}], "chat(tools=…)")
    for value in (graph(list), cycle()):
        with pytest.raises(SamplingError, match=r"chat\(sampling=…\): (holds more|has more than 48 levels)"):
            check_sampling({"extra_args": {key: value}})


def test_the_search_for_images_ends(tmp_path: Path) -> None:
    message = {"role": "user", "content": [graph(WRAPS["parts"])]}
    with pytest.raises(ImageError, match="contains itself, has too many levels"):
        prepare_images([message], ImagePolicy("inline", tmp_path))


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=list(WRAPS))
def test_a_graph_is_shown_in_a_few_words(wrap: Callable[[Any], Any]) -> None:
    assert len(show_value(graph(wrap))) <= 201


@pytest.mark.parametrize("value", [cycle(), 10**5000, "x" * 10**6], ids=["cycle", "integer", "text"])
def test_any_value_is_shown_in_a_few_words(value: object) -> None:
    assert len(show_value(value)) <= 201
