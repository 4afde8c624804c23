"""The API key of engines or a judge: in no file, log or command line, and such that an HTTP header can carry it."""

from collections.abc import Mapping

from rollout.errors import ConfigurationError


def read_api_key(variable_name: str, environment: Mapping[str, str], *, named_by: str) -> str:
    """Read the engines' key from a variable; `named_by` is the setting that names this variable.

    Raises:
        ConfigurationError: the variable is not set, or does not hold a key.
    """
    key = clean_api_key(environment.get(variable_name, ""), found_in=variable_name, owner="the engines'")
    if not key:
        raise ConfigurationError(
            f"{named_by} names {variable_name}, and no such environment variable is set; set it to the "
            "engines' API key."
        )
    return key


def clean_api_key(key: str, *, found_in: str, owner: str) -> str:
    """Return a key without the white space around it, which may leave nothing.

    Raises:
        ConfigurationError: no HTTP header can carry the rest; the text does not tell the key.
    """
    # A key that was read from a file often ends with the file's last line break.
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError(f"{found_in} holds characters that no HTTP header carries; is it {owner} API key?")
    return key
