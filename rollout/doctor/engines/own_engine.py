"""Recognises the engines of this package. They take tokens only, so they have no tokenizer and no chat template."""

import orjson

from rollout.doctor.engines.under_test import EngineUnderTest
from rollout.engine.errors import EngineRefused

_OWNER_OF_OUR_MODELS = "rollout"


async def is_own_engine(engine: EngineUnderTest) -> bool:
    """Whether the engine is the embedded or the transformers engine of this package.

    Raises:
        EngineRefused: the engine's list of models has an unknown form.
    """
    url = f"{engine.url}/v1/models"
    models = await engine.transport.get(url)
    try:
        return any(
            model["id"] == engine.model and model.get("owned_by") == _OWNER_OF_OUR_MODELS
            for model in orjson.loads(models)["data"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise EngineRefused(f"{url} answers in an unknown form ({error!r}); is this a vLLM server?") from None
