"""The resolver: from the references of a request to the items that the engine gets."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from rollout_vllm.encoded_image import read_encoded_image  # type: ignore[import-not-found]
from rollout_vllm.errors import InvalidImageRef, MaterialisationFailed  # type: ignore[import-not-found]
from rollout_vllm.resolver import Resolver  # type: ignore[import-not-found]
from rollout_vllm.single_flight import AsyncSingleFlightCache  # type: ignore[import-not-found]


@pytest.fixture
def counted() -> Counter[str]:
    return Counter()


class CountingCache(AsyncSingleFlightCache):  # type: ignore[misc]
    """Sets `all_asked` when there were `expected` calls of `get`."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self.expected = 0
        self.all_asked = asyncio.Event()

    async def get(self, key: str, make: Callable[[], Any]) -> Any:
        self.expected -= 1
        if not self.expected:
            self.all_asked.set()
        return await super().get(key, make)


@pytest.fixture
def cache() -> CountingCache:
    return CountingCache(10_000)


@pytest.fixture
def resolver(server: Any, processor: Any, cache: CountingCache, counted: Counter[str]) -> Any:
    def count(origin: str) -> None:
        counted[origin] += 1

    return Resolver(server.config, processor, cache, count)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hashes of the images that were read, in order."""
    read_hashes: list[str] = []

    def read(claim: Any, config: Any) -> Any:
        read_hashes.append(claim.ref.mm_hash)
        return read_encoded_image(claim, config)

    monkeypatch.setattr("rollout_vllm.resolver.read_encoded_image", read)
    return read_hashes


async def test_references_and_tensors_are_resolved_in_their_order(
    server: Any, resolver: Any, counted: Counter[str], v2: Callable[..., str]
) -> None:
    pictures = [server.picture(color=color) for color in range(4)]
    data = [pictures[0].ref(), "tensors-of-" + pictures[1].sha256, pictures[2].inline(), v2(pictures[3])]
    prompt = server.prompt(*pictures, data=data)
    resolved = await resolver.resolve(prompt.token_ids, prompt.features)
    assert resolved.serialised_items == ["tensors-of-" + picture.sha256 for picture in pictures]
    assert resolved.tensor_digests == ["identity-" + picture.sha256 for picture in pictures]
    assert counted == {"made": 3, "stock": 1}


async def test_an_image_that_is_sent_again_is_processed_once(server: Any, resolver: Any, processor: Any) -> None:
    picture = server.picture()
    prompt = server.prompt(picture, picture)
    for _ in range(3):
        await resolver.resolve(prompt.token_ids, prompt.features)
    assert processor.made == [picture.sha256]


async def test_two_hundred_requests_for_a_new_image_process_it_once_though_half_are_cancelled(
    server: Any, resolver: Any, processor: Any, cache: CountingCache
) -> None:
    processor.gate = asyncio.Event()
    cache.expected = 200
    prompt = server.prompt(server.picture())
    requests: list[asyncio.Task[Any]] = [
        asyncio.ensure_future(resolver.resolve(prompt.token_ids, prompt.features)) for _ in range(200)
    ]
    # Each request reads its bytes in a thread first. Without callers, the shared work would be cancelled.
    await asyncio.wait_for(cache.all_asked.wait(), 60)
    for request in requests[::2]:
        request.cancel()
    processor.gate.set()
    await asyncio.wait(requests)
    assert all(request.cancelled() for request in requests[::2])
    assert all(len(request.result().serialised_items) == 1 for request in requests[1::2])
    assert len(processor.made) == 1


async def test_no_image_is_read_if_one_item_of_the_request_is_bad(server: Any, resolver: Any, reads: list[str]) -> None:
    good, bad = server.picture(color=1), server.picture(color=2)
    for data in (None, "mmraw:v3:e30", bad.ref(fingerprint="0" * 32), bad.ref(run_id="..\0")):
        prompt = server.prompt(good, bad, data=[good.ref(), data])
        with pytest.raises(InvalidImageRef, match=r"kwargs_data.image\[1\]"):
            await resolver.resolve(prompt.token_ids, prompt.features)
    assert reads == []


async def test_each_reference_is_checked_though_its_image_is_cached(server: Any, resolver: Any) -> None:
    picture, other = server.picture(color=1), server.picture(color=2)
    prompt = server.prompt(picture)
    await resolver.resolve(prompt.token_ids, prompt.features)
    for wrong in (
        picture.ref(raw_image_id=other.name),
        picture.ref(raw_image_id="gone.png"),
        picture.ref(raw_image_id=None, raw_uri=other.uri),
        picture.ref(payload={"image_grid_thw": [[1, 6, 4]]}),
    ):
        prompt = server.prompt(picture, data=[wrong])
        with pytest.raises(InvalidImageRef):
            await resolver.resolve(prompt.token_ids, prompt.features)


async def test_the_error_of_a_wrong_grid_has_the_correct_one(server: Any, resolver: Any) -> None:
    picture = server.picture(96, 64)
    prompt = server.prompt(picture, data=[picture.ref(payload={"image_grid_thw": [[1, 6, 4]]})])
    with pytest.raises(InvalidImageRef, match=r"has the grid \[1, 6, 4\], but the image has \[1, 4, 6\]"):
        await resolver.resolve(prompt.token_ids, prompt.features)


async def test_bytes_that_are_not_an_image_are_an_error_of_the_request(server: Any, resolver: Any) -> None:
    picture = server.picture(stored=False)
    broken = type(picture)(picture.data[:40], picture.grid, picture.tokens, picture.fingerprint)
    prompt = server.prompt(broken, data=[broken.inline()])
    with pytest.raises(InvalidImageRef, match=r"features.kwargs_data.image\[0\]"):
        await resolver.resolve(prompt.token_ids, prompt.features)


async def test_a_failure_of_the_processor_is_an_error_of_the_server_and_is_not_cached(
    server: Any, resolver: Any, processor: Any
) -> None:
    processor.fails = MaterialisationFailed("out of memory")
    prompt = server.prompt(server.picture())
    with pytest.raises(MaterialisationFailed):
        await resolver.resolve(prompt.token_ids, prompt.features)
    processor.fails = None
    assert (await resolver.resolve(prompt.token_ids, prompt.features)).serialised_items


async def test_the_error_names_the_first_bad_item(server: Any, resolver: Any) -> None:
    pictures = [server.picture(color=color) for color in range(3)]
    data = [pictures[0].ref()] + [picture.ref(raw_image_id="gone.png") for picture in pictures[1:]]
    prompt = server.prompt(*pictures, data=data)
    with pytest.raises(InvalidImageRef, match=r"image\[1\]"):
        await resolver.resolve(prompt.token_ids, prompt.features)


async def test_other_tensors_under_a_known_hash_are_refused(server: Any, resolver: Any) -> None:
    picture, other = server.picture(color=1), server.picture(color=2)
    known = server.prompt(picture)
    await resolver.resolve(known.token_ids, known.features)
    false = server.prompt(picture, data=["tensors-of-" + other.sha256])
    with pytest.raises(InvalidImageRef, match="other tensors"):
        await resolver.resolve(false.token_ids, false.features)
    true = server.prompt(picture, data=["tensors-of-" + picture.sha256])
    assert (await resolver.resolve(true.token_ids, true.features)).tensor_digests == ["identity-" + picture.sha256]


async def test_tensors_with_a_wrong_hash_do_not_replace_the_image_with_that_hash(server: Any, resolver: Any) -> None:
    picture, other = server.picture(color=1), server.picture(color=2)
    false = server.prompt(picture, data=["tensors-of-" + other.sha256])
    resolved = await resolver.resolve(false.token_ids, false.features)
    assert resolved.tensor_digests == ["identity-" + other.sha256], "the engine names tensors by their content"
    true = server.prompt(picture)
    assert (await resolver.resolve(true.token_ids, true.features)).tensor_digests == ["identity-" + picture.sha256]
