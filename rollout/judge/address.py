"""Splits the address of a judge into a URL without secrets and a header with the secrets."""

import base64
import json
import re
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import SplitResult, quote, quote_plus, unquote

import httpx

from rollout.config.api_key import clean_api_key
from rollout.errors import ConfigurationError
from rollout.records.wrong_types import describe_wrong_type
from transports.errors import QueueURLError
from transports.redaction import HIDDEN, hide_passwords
from transports.urls import split_url

_ROUTE = "/chat/completions"
_MAX_SHOWN_CHARS = 200
_MAX_EXCERPT_CHARS = 500
_ENCODED_BYTE = re.compile("%[0-9A-F]{2}")


@dataclass(frozen=True, slots=True)
class JudgeAddress:
    """The address of a judge.

    Attributes:
        base_url: the URL that the user gave, without user, password and last slash; errors show it.
        authorization: the value of the header `Authorization`; None if the judge needs none.
        secrets: the texts that no error and no log may contain, sorted from longest to shortest.
    """

    base_url: str
    authorization: str | None = field(default=None, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def parse(cls, base_url: str, api_key: str | None) -> Self:
        """Check a URL and an API key, and return the address.

        Raises:
            ConfigurationError: the URL or the key is not valid, or there are both a user and a key. The error has no
                secret.
        """
        parts = _split(base_url)
        key = _checked_key(api_key)
        host = parts.netloc.rpartition("@")[2]
        plain_url = parts._replace(netloc=host, path=parts.path.rstrip("/")).geturl()
        _require_known_to_httpx(plain_url)
        if parts.username is None and parts.password is None:
            return cls(plain_url) if key is None else cls(plain_url, f"Bearer {key}", _spellings(key))
        if key is not None:
            raise ConfigurationError(
                f"Judge: base_url {plain_url} contains a user name, and api_key is also set. Only one of them can be "
                "sent; leave one out."
            )
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        # A user name without a password is often a token, so it is secret, too.
        secrets = (password, parts.password or "") if password else (user, parts.username or "")
        return cls(plain_url, f"Basic {token}", _spellings(token, *secrets))

    @property
    def url(self) -> str:
        """The URL to which questions are sent."""
        return self.base_url + _ROUTE

    def hide_secrets(self, text: str) -> str:
        """Return a text from a server in which the secrets of this client are replaced."""
        for secret in self.secrets:
            text = text.replace(secret, HIDDEN)
        return text

    def excerpt(self, text: str) -> str:
        """Return the start of a text from a server, as one line without secrets."""
        # Remove the secrets before cutting the text, because half a key is secret, too.
        one_line = " ".join(self.hide_secrets(text).split())
        return self.hide_secrets(one_line)[:_MAX_EXCERPT_CHARS]

    def location_excerpt(self, location: str) -> str:
        """Return the start of a URL from a server, without secrets, password, query and fragment."""
        return self.excerpt(re.split("[?#]", hide_passwords(self.hide_secrets(location)))[0])


def _spellings(*secrets: str) -> tuple[str, ...]:
    """Return each secret as it is, and as JSON and URLs write it, because some servers repeat it in these forms."""
    in_json = [json.dumps(secret)[1:-1] for secret in secrets]
    in_urls = [
        spelling for secret in secrets for spelling in (quote(secret, safe=""), quote(secret), quote_plus(secret))
    ]
    in_urls += [_ENCODED_BYTE.sub(lambda match: match[0].lower(), text) for text in in_urls]
    spellings = {*secrets, *in_json, *(text.replace("/", r"\/") for text in in_json), *in_urls} - {""}
    return tuple(sorted(spellings, key=lambda text: (-len(text), text)))


def _split(base_url: object) -> SplitResult:
    if not isinstance(base_url, str):
        raise ConfigurationError(f"Judge: base_url is {describe_wrong_type(base_url)}; {_expected_url()}")
    try:
        parts = split_url(base_url.strip())
    except QueueURLError as error:
        raise ConfigurationError(f"Judge: base_url {error}") from None
    shown_url = hide_passwords(base_url.strip())[:_MAX_SHOWN_CHARS]
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"Judge: base_url {shown_url!r} is not an HTTP address; {_expected_url()}")
    if parts.query or parts.fragment:
        shown_url = hide_passwords(parts._replace(query="", fragment="").geturl())[:_MAX_SHOWN_CHARS]
        raise ConfigurationError(f"Judge: base_url {shown_url!r} has a query or a fragment; {_expected_url()}")
    if parts.path.rstrip("/").endswith(_ROUTE):
        raise ConfigurationError(
            f"Judge: base_url {shown_url!r} ends in {_ROUTE}; leave this part out, because it is added later."
        )
    return parts


def _expected_url() -> str:
    return "expected the part of the URL before /chat/completions, such as http://127.0.0.1:8000/v1."


def _require_known_to_httpx(plain_url: str) -> None:
    try:
        is_known = str(httpx.URL(plain_url)).isprintable() and " " not in plain_url
    except (httpx.InvalidURL, ValueError):  # ValueError: half of a surrogate pair in the URL
        is_known = False
    if not is_known:
        shown_url = ascii(plain_url[:_MAX_SHOWN_CHARS])
        raise ConfigurationError(f"Judge: base_url {shown_url} is malformed; {_expected_url()}")


def _checked_key(api_key: object) -> str | None:
    if api_key is None:
        return None
    if not isinstance(api_key, str):
        raise ConfigurationError(f"Judge: api_key is {describe_wrong_type(api_key)}; expected a string.")
    key = clean_api_key(api_key, found_in="Judge: api_key", owner="the judge's")
    if not key:
        raise ConfigurationError("Judge: api_key is empty; give the API key, or None if the judge needs no key.")
    return key
