"""Makes the engine client that a configuration describes."""

import os
from collections.abc import Mapping, Sequence

from renderers_adapter.geometry import Geometry
from rollout.config.api_key import read_api_key
from rollout.config.load import Config
from rollout.engine.client import EngineClient, RequestObserver


def engine_client_from_config(
    config: Config,
    urls: Sequence[str],
    geometry: Geometry | None,
    environment: Mapping[str, str] = os.environ,
    on_try: RequestObserver | None = None,
) -> EngineClient:
    """Return a client of the engines at `urls`: the configured engines, or an embedded engine.

    `geometry` describes the model's images; None: the model takes no images. `on_try` is called after every try.

    Raises:
        ConfigurationError: the environment variable of the API key is not set, or does not contain a key.
    """
    engine_config = config.engine
    return EngineClient(
        urls,
        config.model.name,
        timeout=engine_config.timeout,
        request_timeout=engine_config.request_timeout,
        retries=engine_config.retries,
        affinity=engine_config.affinity,
        api_key=api_key_from_config(config, environment),
        multimodal=engine_config.multimodal,
        geometry=geometry,
        on_try=on_try,
    )


def api_key_from_config(config: Config, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the API key of the engines; None if none is configured.

    Raises:
        ConfigurationError: the environment variable of the API key is not set, or does not contain a key.
    """
    variable_name = config.engine.api_key_env
    if variable_name is None:
        return None
    return read_api_key(variable_name, environment, named_by="engine.api_key_env")
