"""The engine client that a configuration describes."""

import os
from collections.abc import Mapping, Sequence

from renderers_adapter.geometry import Geometry
from rollout.config.load import Config
from rollout.engine.client import EngineClient, RequestObserver
from rollout.errors import ConfigurationError


def engine_client_from_config(
    config: Config,
    urls: Sequence[str],
    geometry: Geometry | None,
    environment: Mapping[str, str] = os.environ,
    on_try: RequestObserver | None = None,
) -> EngineClient:
    """A client of the engines at `urls`: the configured ones, or the one that was started instead.

    `geometry` is that of the model's images; None: the model takes no images. `on_try` is called after every try.

    Raises:
        ConfigurationError: the environment variable with the API key is not set, or does not hold a key.
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
    """The engines' API key, if one is configured. Raises ConfigurationError if it is not set or not a valid key."""
    variable_name = config.engine.api_key_env
    if variable_name is None:
        return None
    # A key that was read from a file often ends with the file's last line break.
    key = environment.get(variable_name, "").strip()
    if not key:
        raise ConfigurationError(
            f"engine.api_key_env names {variable_name}, and no such environment variable is set; set it to the "
            "engines' API key."
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError(
            f"{variable_name} holds characters that no HTTP header carries; is it the engines' API key?"
        )
    return key
