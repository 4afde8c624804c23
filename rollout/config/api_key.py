"""The engines' API key: in an environment variable that a setting names, and in no file, log or command line."""

from collections.abc import Mapping

from rollout.errors import ConfigurationError


def read_api_key(variable_name: str, environment: Mapping[str, str], *, named_by: str) -> str:
    """Read the key from a variable; `named_by` is the setting that names this variable.

    Raises:
        ConfigurationError: the variable is not set, or does not hold a key.
    """
    # A key that was read from a file often ends with the file's last line break.
    key = environment.get(variable_name, "").strip()
    if not key:
        raise ConfigurationError(
            f"{named_by} names {variable_name}, and no such environment variable is set; set it to the "
            "engines' API key."
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError(
            f"{variable_name} holds characters that no HTTP header carries; is it the engines' API key?"
        )
    return key
