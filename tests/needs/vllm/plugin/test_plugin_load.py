"""Many requests for the same new image process it once, even if some of them are cancelled."""

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx


async def test_two_hundred_requests_process_one_new_image_once_though_half_are_cancelled(
    fleet: Mapping[str, Any], wire: Any
) -> None:
    live = fleet["qwen3-vl"]
    plugin_client = wire("qwen3-vl")
    expected = plugin_client.answer_of(plugin_client.content_parts([plugin_client.picture(800, 600, seed=11)]))
    before = {
        origin: plugin_client.counter(f'mmraw_images_total{{origin="{origin}"}}')
        for origin in ("made", "joined", "kept")
    }
    bodies = [plugin_client.features([plugin_client.picture(800, 600, seed=11)]) for _ in range(200)]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=live.url, timeout=300, limits=limits, trust_env=False) as client:
        sent = [asyncio.ensure_future(client.post("/inference/v1/generate", json=body)) for body in bodies]
        made = before["made"]
        while made == before["made"]:
            made = await asyncio.to_thread(plugin_client.counter, 'mmraw_images_total{origin="made"}')
        for request in sent[::2]:
            request.cancel()
        await asyncio.wait(sent)
    answers = [request.result() for request in sent[1::2]]
    assert [answer.status_code for answer in answers] == [200] * 100
    for answer in answers:
        (choice,) = answer.json()["choices"]
        assert choice["token_ids"] == expected.tokens
    after = {origin: plugin_client.counter(f'mmraw_images_total{{origin="{origin}"}}') for origin in before}
    assert after["made"] == before["made"] + 1
    assert plugin_client.answer_of(plugin_client.features([plugin_client.picture(800, 600, seed=11)])) == expected
