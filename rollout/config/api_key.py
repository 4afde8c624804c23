"""Reads the API key of engines or a judge from a variable. The key is never in a file, a log or a command line."""

from collections.abc import Mapping

from rollout.errors import ConfigurationError


def read_api_key(variable_name: str, environment: Mapping[str, str], *, named_by: str) -> str:
    """Return the engines' API key from an environment variable. `named_by` is the setting that names the variable.

    Raises:
        ConfigurationError: the variable is not set, or does not hold a key.
    """
    key = clean_api_key(environment.get(variable_name, ""), found_in=variable_name, owner="the engines'")
    if not key:
        raise ConfigurationError(
            f"{named_by} names the environment variable {variable_name}, which is not set; set it to the engines' API "
            "key."
        )
    return key


def clean_api_key(key: str, *, found_in: str, owner: str) -> str:
    """Return a key without the white space around it; the result may be empty.

    Raises:
        ConfigurationError: an HTTP header cannot contain the key; the message does not show the key.
    """
    # A key from a file often ends with a line break.
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError(
            f"{found_in} has characters that an HTTP header cannot contain; check that it is {owner} API key."
        )
    return key
