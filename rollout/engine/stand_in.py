"""An engine without a server, for tests of programs that talk to engines."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson

from rollout.engine.transport import EngineTransport

AnswerFunction = Callable[[str, bytes], Awaitable[tuple[int, bytes]]]
"""Takes the URL and the body of a request, and returns the status and the body of the answer."""


class StandInEngine(EngineTransport):
    """Answers the requests of an `EngineClient` with a function, without a server.

        async def answer(url: str, body: bytes) -> tuple[int, bytes]:
            if url.endswith("/inference/v1/generate"):
                return 200, completion(body, [5, 6, 7])
            return 200, b'{"data": [{"id": "tiny", "max_model_len": 512}]}'

        async with EngineClient(["http://a"], "tiny", timeout=5, transport=StandInEngine(answer)) as client:
            await client.check()
            generation = await client.generate(request)

    The URL contains the engine and its route, so one function may answer for several engines. The function may raise
    EngineUnreachable, as a broken connection does. To test an environment, use `rollout.testing.play` instead.
    """

    def __init__(self, answer: AnswerFunction) -> None:
        self._answer = answer

    async def send(self, method: str, url: str, body: bytes, *, session_id: str | None = None) -> tuple[int, bytes]:
        """See `EngineTransport.send`."""
        return await self._answer(url, body)


def completion(body: bytes, token_ids: Sequence[int], **changed_fields: Any) -> bytes:
    """Return the body of the answer of an engine that sampled these tokens for a prompt without images.

    `changed_fields` replace or extend the fields of the answer's only choice, such as `finish_reason`.
    """
    logprobs = {"content": [{"token_id": token, "logprob": -0.5} for token in token_ids]}
    choice = {"token_ids": token_ids, "logprobs": logprobs, "finish_reason": "stop", **changed_fields}
    return orjson.dumps({"choices": [choice], "prompt_token_ids": orjson.loads(body)["token_ids"]})
