"""The queue that `readers.py` reads."""

from collections.abc import AsyncIterator

import pytest

from tests.unit.trainer.readers import QUEUE
from transports import Queue, open_queue


@pytest.fixture
async def queue() -> AsyncIterator[Queue]:
    async with open_queue(QUEUE) as opened:
        yield opened
