"""Items with images are found by their bytes, and only by all of them."""

from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.gateway.dialects.large_items import LargeItems
from rollout.gateway.dialects.reading import KnownItems

URL = "data:image/png;base64," + "iVBORw0KGgo" * 500
OTHER_URL = URL[:3000] + "x" + URL[3001:]


def item(*urls: str, **extra: Any) -> bytes:
    return orjson.dumps({"role": "user", "content": [{"image_url": {"url": url}} for url in urls], **extra})


def kept(data: bytes, *texts: str) -> LargeItems[str]:
    items: LargeItems[str] = LargeItems()
    assert items.keep(data, texts, "read")
    return items


@pytest.mark.parametrize("urls", [(URL,), (URL, URL), (URL, OTHER_URL)])
def test_the_same_bytes_are_found(urls: tuple[str, ...]) -> None:
    assert kept(item(*urls), *urls).find(item(*urls)) == "read"


@given(at=st.integers(0, len(item(URL, OTHER_URL)) - 1), byte=st.integers(1, 255))
def test_bytes_with_one_other_byte_are_not_found(at: int, byte: int) -> None:
    data = item(URL, OTHER_URL)
    changed = data[:at] + bytes([data[at] ^ byte]) + data[at + 1 :]
    assert kept(data, URL, OTHER_URL).find(changed) is None


@pytest.mark.parametrize(
    "other", [item(OTHER_URL), item(URL, URL), item(URL)[:-1], item(URL) + b" ", item(URL, name="Ada"), b""]
)
def test_other_bytes_are_not_found(other: bytes) -> None:
    assert kept(item(URL), URL).find(other) is None


def test_items_with_the_same_fingerprint_are_told_apart() -> None:
    """The byte in which the items differ is not part of the fingerprint."""
    items: LargeItems[str] = LargeItems()
    for url in (URL, OTHER_URL):
        assert items.keep(item(url), [url], url[3000])
    assert (items.find(item(URL)), items.find(item(OTHER_URL))) == (URL[3000], "x")


def test_only_some_items_with_the_same_fingerprint_are_kept() -> None:
    items: LargeItems[int] = LargeItems()
    urls = [URL[:3000] + letter + URL[3001:] for letter in "abcdefghijklm"]
    assert [items.keep(item(url), [url], 1) for url in urls] == [True] * 8 + [False] * 5


def test_an_item_with_much_text_beside_its_images_is_not_kept() -> None:
    items: LargeItems[str] = LargeItems()
    assert not items.keep(item(URL, text="x" * 5000), [URL], "read")


def test_a_text_with_escapes_is_not_kept() -> None:
    data = item(URL).replace(b"/", b"\\/")
    assert orjson.loads(data) == orjson.loads(item(URL))
    assert not LargeItems[str]().keep(data, [URL], "read")


@pytest.mark.parametrize(
    "data",
    [
        item(URL),
        item(URL, OTHER_URL),
        item(URL, text="x" * 5000),
        item(URL).replace(b"/", b"\\/"),
        item("data:,"),
        item(name="x" * 5000),
        orjson.dumps({"content": [], "name": "é\n" * 2000}),
    ],
)
@pytest.mark.parametrize("knows_texts", [True, False])
def test_the_same_bytes_of_any_item_are_read_once(data: bytes, knows_texts: bool) -> None:
    def urls(read: Any) -> list[str]:
        return [part["image_url"]["url"] for part in read["content"]]

    items: KnownItems[Any] = KnownItems(lambda value, place: value, urls if knows_texts else None)
    first = items.read(msgspec.Raw(data), "messages[0]")
    assert items.read(msgspec.Raw(bytes(bytearray(data))), "messages[1]") is first
    assert first == orjson.loads(data)
    assert items.read(msgspec.Raw(item(OTHER_URL)), "messages[2]") == orjson.loads(item(OTHER_URL))
