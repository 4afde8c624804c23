"""The way of a request's images, from its references to what the engine is fed."""

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
    """Says when as many as `expected` have asked."""

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
def resolver(world: Any, processor: Any, cache: CountingCache, counted: Counter[str]) -> Any:
    def count(origin: str) -> None:
        counted[origin] += 1

    return Resolver(world.facts, processor, cache, count)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of hashes of the images that were read; it grows with each read."""
    read_hashes: list[str] = []

    def read(claim: Any, facts: Any) -> Any:
        read_hashes.append(claim.ref.mm_hash)
        return read_encoded_image(claim, facts)

    monkeypatch.setattr("rollout_vllm.resolver.read_encoded_image", read)
    return read_hashes


async def test_references_and_tensors_are_resolved_in_their_order(
    world: Any, resolver: Any, counted: Counter[str], v2: Callable[..., str]
) -> None:
    pictures = [world.picture(color=color) for color in range(4)]
    data = [pictures[0].ref(), "tensors-of-" + pictures[1].sha256, pictures[2].inline(), v2(pictures[3])]
    prompt = world.prompt(*pictures, data=data)
    resolved = await resolver.resolve(prompt.token_ids, prompt.features)
    assert resolved.serialised_items == ["tensors-of-" + picture.sha256 for picture in pictures]
    assert resolved.tensor_digests == ["identity-" + picture.sha256 for picture in pictures]
    assert counted == {"made": 3, "stock": 1}


async def test_an_image_that_comes_again_is_processed_once(world: Any, resolver: Any, processor: Any) -> None:
    picture = world.picture()
    prompt = world.prompt(picture, picture)
    for _ in range(3):
        await resolver.resolve(prompt.token_ids, prompt.features)
    assert processor.made == [picture.sha256]


async def test_two_hundred_requests_for_a_new_image_half_of_them_cancelled(
    world: Any, resolver: Any, processor: Any, cache: CountingCache
) -> None:
    processor.gate = asyncio.Event()
    cache.expected = 200
    prompt = world.prompt(world.picture())
    requests: list[asyncio.Task[Any]] = [
        asyncio.ensure_future(resolver.resolve(prompt.token_ids, prompt.features)) for _ in range(200)
    ]
    # Each reads its bytes in a thread first; a flight that its few passengers leave is rightly given up.
    await asyncio.wait_for(cache.all_asked.wait(), 60)
    for request in requests[::2]:
        request.cancel()
    processor.gate.set()
    await asyncio.wait(requests)
    assert all(request.cancelled() for request in requests[::2])
    assert all(len(request.result().serialised_items) == 1 for request in requests[1::2])
    assert len(processor.made) == 1


async def test_nothing_is_read_for_a_request_with_one_bad_item(world: Any, resolver: Any, reads: list[str]) -> None:
    good, bad = world.picture(color=1), world.picture(color=2)
    for data in (None, "mmraw:v3:e30", bad.ref(fingerprint="0" * 32), bad.ref(run_id="..\0")):
        prompt = world.prompt(good, bad, data=[good.ref(), data])
        with pytest.raises(InvalidImageRef, match=r"kwargs_data.image\[1\]"):
            await resolver.resolve(prompt.token_ids, prompt.features)
    assert reads == []


async def test_a_cached_image_does_not_vouch_for_another_reference(world: Any, resolver: Any) -> None:
    picture, other = world.picture(color=1), world.picture(color=2)
    prompt = world.prompt(picture)
    await resolver.resolve(prompt.token_ids, prompt.features)
    for wrong in (
        picture.ref(raw_image_id=other.name),
        picture.ref(raw_image_id="gone.png"),
        picture.ref(raw_image_id=None, raw_uri=other.uri),
        picture.ref(payload={"image_grid_thw": [[1, 6, 4]]}),
    ):
        prompt = world.prompt(picture, data=[wrong])
        with pytest.raises(InvalidImageRef):
            await resolver.resolve(prompt.token_ids, prompt.features)


async def test_a_grid_that_is_not_the_images_is_refused_with_the_one_that_is(world: Any, resolver: Any) -> None:
    picture = world.picture(96, 64)
    prompt = world.prompt(picture, data=[picture.ref(payload={"image_grid_thw": [[1, 6, 4]]})])
    with pytest.raises(InvalidImageRef, match=r"has the grid \[1, 6, 4\], but the image has \[1, 4, 6\]"):
        await resolver.resolve(prompt.token_ids, prompt.features)


async def test_bytes_that_are_no_image_are_the_requests_fault(world: Any, resolver: Any) -> None:
    picture = world.picture(stored=False)
    broken = type(picture)(picture.data[:40], picture.grid, picture.tokens, picture.fingerprint)
    prompt = world.prompt(broken, data=[broken.inline()])
    with pytest.raises(InvalidImageRef, match=r"features.kwargs_data.image\[0\]"):
        await resolver.resolve(prompt.token_ids, prompt.features)


async def test_a_processor_that_fails_is_the_servers_fault_and_is_asked_again(
    world: Any, resolver: Any, processor: Any
) -> None:
    processor.fails = MaterialisationFailed("out of memory")
    prompt = world.prompt(world.picture())
    with pytest.raises(MaterialisationFailed):
        await resolver.resolve(prompt.token_ids, prompt.features)
    processor.fails = None
    assert (await resolver.resolve(prompt.token_ids, prompt.features)).serialised_items


async def test_of_several_bad_items_the_first_is_named(world: Any, resolver: Any) -> None:
    pictures = [world.picture(color=color) for color in range(3)]
    data = [pictures[0].ref()] + [picture.ref(raw_image_id="gone.png") for picture in pictures[1:]]
    prompt = world.prompt(*pictures, data=data)
    with pytest.raises(InvalidImageRef, match=r"image\[1\]"):
        await resolver.resolve(prompt.token_ids, prompt.features)


async def test_other_tensors_under_a_known_hash_are_refused(world: Any, resolver: Any) -> None:
    picture, other = world.picture(color=1), world.picture(color=2)
    known = world.prompt(picture)
    await resolver.resolve(known.token_ids, known.features)
    false = world.prompt(picture, data=["tensors-of-" + other.sha256])
    with pytest.raises(InvalidImageRef, match="other tensors"):
        await resolver.resolve(false.token_ids, false.features)
    true = world.prompt(picture, data=["tensors-of-" + picture.sha256])
    assert (await resolver.resolve(true.token_ids, true.features)).tensor_digests == ["identity-" + picture.sha256]


async def test_a_false_claim_to_a_hash_does_not_keep_the_true_image_out(world: Any, resolver: Any) -> None:
    picture, other = world.picture(color=1), world.picture(color=2)
    false = world.prompt(picture, data=["tensors-of-" + other.sha256])
    resolved = await resolver.resolve(false.token_ids, false.features)
    assert resolved.tensor_digests == ["identity-" + other.sha256], "the engine knows it by what it is"
    true = world.prompt(picture)
    assert (await resolver.resolve(true.token_ids, true.features)).tensor_digests == ["identity-" + picture.sha256]
