"""Checks that the engine has the same tokenizer as we have."""

import orjson

from rollout.doctor.engines.under_test import CheckNotMade, EngineUnderTest
from rollout.engine.errors import EngineMismatch, EngineNotFound


async def check_tokens(engine: EngineUnderTest) -> str:
    """Check that both tokenizers give the same ids for a prompt with special and pad tokens; return the finding."""
    tokenizer = engine.adapter.tokenizer
    text = tokenizer.decode(engine.image_request.prompt.tolist())
    own_ids = tokenizer.encode(text)
    body = {"model": engine.client.model, "prompt": text, "add_special_tokens": False}
    try:
        server_ids = orjson.loads(await engine.transport.post(f"{engine.url}/tokenize", orjson.dumps(body)))["tokens"]
    except EngineNotFound:
        raise CheckNotMade("this server has no tokenizer route") from None
    except (ValueError, KeyError, TypeError) as error:
        raise EngineMismatch(f"{engine.url}/tokenize answers in an unknown form ({error!r}).") from None
    if server_ids != own_ids:
        id_pairs = enumerate(zip(own_ids, server_ids, strict=False))
        position = next(
            (at for at, (own_id, server_id) in id_pairs if own_id != server_id), min(len(own_ids), len(server_ids))
        )
        raise EngineMismatch(
            f"the server has a different tokenizer: its token {position} is {server_ids[position : position + 1]}, "
            f"ours is {own_ids[position : position + 1]} ({tokenizer.decode(own_ids[position : position + 1])!r})."
        )
    return f"the same tokenizer: {len(own_ids)} tokens are equal, including special and pad tokens"


def tokens_fix(engine: EngineUnderTest, error: Exception) -> str:
    """Return what corrects an error of `check_tokens`."""
    return "set model.path to the directory of the checkpoint that the engine serves"
