"""Preparation in threads, beside the event loop."""

import asyncio
import copy
import threading
from typing import Any

import pytest

from rollout.images import ImagePolicy, inspect_image, prepare_images_async


async def test_new_images_are_inspected_in_a_thread_and_known_ones_are_not(
    encode: Any, data_uri: Any, messages_with: Any, offload: ImagePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    def watched(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return inspect_image(*arguments)

    monkeypatch.setattr("rollout.images.resolve.inspect_image", watched)
    messages = messages_with(data_uri(encode()))
    report = await prepare_images_async(messages, offload)
    again = await prepare_images_async(messages, offload)
    assert threads
    assert threading.main_thread() not in threads
    assert again.images == report.images
    assert len(threads) == 1


async def test_a_cancelled_preparation_changes_no_message(
    encode: Any, data_uri: Any, messages_with: Any, offload: ImagePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        started.set()
        go_on.wait(10)
        return inspect_image(*arguments)

    monkeypatch.setattr("rollout.images.resolve.inspect_image", slow)
    messages = messages_with(data_uri(encode()))
    before = copy.deepcopy(messages)
    task = asyncio.create_task(prepare_images_async(messages, offload))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert messages == before
