"""Queue URLs. The options of a query become a frozen, typed object; an unknown option is an error."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, fields
from typing import Any, Literal, NewType, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import SplitResult, parse_qsl, urlsplit

from transports.errors import QueueURLError
from transports.redaction import HIDDEN, hide_lone_user, hide_passwords

Size = NewType("Size", int)
"""A number of bytes. In a URL it may have a unit: 64MB, 1.5GiB."""

_URL_START = re.compile(r"\s*[a-z][a-z0-9+.-]*:/", re.IGNORECASE)
_SIZE_PATTERN = re.compile(r"(\d+(?:\.\d+)?)\s*(|k|m|g|t)(i?)b?", re.IGNORECASE)
MAX_PARTITIONS = 4096
_HARD_LIMIT_FACTOR = 4


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """The options that every transport understands."""

    partitions: int | None = None
    """The number of partitions, fixed when the queue is created; None: that number, or 1 for a new queue."""
    high_water: Size = Size(256 << 20)
    """Unacked bytes above which no new work may start."""
    high_water_records: int | None = None
    """Unacked records above which no new work may start; None: no such limit."""
    hard_limit: Size | None = None
    """Unacked bytes above which a put is an error; None: four times the high water."""

    def __post_init__(self) -> None:
        if self.partitions is not None and not 1 <= self.partitions <= MAX_PARTITIONS:
            raise QueueURLError(f"partitions must be between 1 and {MAX_PARTITIONS}, not {self.partitions}")
        if self.hard_limit is not None and self.hard_limit < self.high_water:
            raise QueueURLError(f"hard_limit ({self.hard_limit}) is below high_water ({self.high_water})")

    @property
    def effective_hard_limit(self) -> int:
        """The hard limit in bytes, with the default."""
        return _HARD_LIMIT_FACTOR * self.high_water if self.hard_limit is None else self.hard_limit

    @property
    def high_water_text(self) -> str:
        """The high water, for an error message."""
        records = "" if self.high_water_records is None else f" or {self.high_water_records} records"
        return f"{self.high_water} bytes{records}"

    def admits(self, backlog_bytes: int, backlog_records: int) -> bool:
        """Whether new work may start with this backlog."""
        too_many = self.high_water_records is not None and backlog_records > self.high_water_records
        return backlog_bytes <= self.high_water and not too_many


OptionsT = TypeVar("OptionsT", bound=QueueOptions)


def split_url(url: str) -> SplitResult:
    """Return the parts of a URL. Raises QueueURLError, without the password, if it is not a URL."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # urlsplit checks the port only when it is read
    except ValueError as error:
        # The text of this error may contain a part of the password.
        reason = (
            "its port is not a number between 0 and 65535" if str(error).startswith("Port") else "its host is malformed"
        )
        raise QueueURLError(f"{hide_passwords(url)}: not a URL: {reason}{_password_hint(url)}") from None
    if parts.netloc and "@" not in parts.netloc and hide_passwords(url) != url and "@" in url:
        raise QueueURLError(f"{hide_passwords(url)}: not a URL: there is an @ after the host{_password_hint(url)}")
    return parts


def has_plain_password(url: str) -> bool:
    """Whether a text is a URL with a secret that is not a reference (`${NAME}`).

    A user without a password is not a secret: the password may be in REDIS_PASSWORD.
    """
    return _URL_START.match(url) is not None and hide_passwords(url) not in (url, hide_lone_user(url))


def without_password(url: str) -> str:
    """Return the URL without its secrets, for a file. References (`${NAME}`) stay."""
    parts = split_url(url)
    kept_options = [option for option in parts.query.split("&") if hide_passwords(option) == option]
    netloc = parts.netloc
    if parts.password is not None and hide_passwords(f"{parts.scheme}://{netloc}") != f"{parts.scheme}://{netloc}":
        host = netloc.rpartition("@")[2]
        netloc = f"{parts.username}@{host}" if parts.username else host
    query = "&".join(kept_options)
    return (
        url if (netloc, query) == (parts.netloc, parts.query) else parts._replace(netloc=netloc, query=query).geturl()
    )


def parse_queue_url(url: str, options: type[OptionsT]) -> tuple[SplitResult, OptionsT]:
    """Return the parts of a URL, and its query as an object of the class `options`.

    Raises QueueURLError for an unknown option (with the nearest known name), an option that is given twice, or a wrong
    value.
    """
    parts = split_url(url)
    shown_url = hide_passwords(url)
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise QueueURLError(f"{shown_url}: not a URL: write each option as key=value") from None
    types = get_type_hints(options)
    option_names = [option_field.name for option_field in fields(options)]
    values: dict[str, Any] = {}
    for key, text in pairs:
        if key not in option_names:
            nearest = difflib.get_close_matches(key, option_names, n=1, cutoff=0.0)[0]
            raise QueueURLError(
                f"{shown_url}: unknown option {_shown_part(key, url)!r}; did you mean {nearest!r}? "
                f"The options of {parts.scheme}:// are {', '.join(sorted(option_names))}."
            )
        if key in values:
            raise QueueURLError(f"{shown_url}: option {key!r} is given twice")
        try:
            values[key] = _convert(text, types[key])
        except ValueError as error:
            raise QueueURLError(f"{shown_url}: option {key}={_shown_part(text, url)!r}: {error}") from None
    try:
        return parts, options(**values)
    except QueueURLError as error:
        raise QueueURLError(f"{shown_url}: {error}") from None


def parse_size(text: str) -> Size:
    """Return the number of bytes that a text names. Raises ValueError."""
    match = _SIZE_PATTERN.fullmatch(text.strip())
    if match is None:
        raise ValueError("expected a number of bytes such as 1048576, 64MB or 1.5GiB")
    number, unit, binary = match.groups()
    return Size(int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit.lower() or " ")))


def _shown_part(part: str, url: str) -> str:
    """Return a part of a URL as an error may show it: hidden if it may be a part of the URL's password."""
    shown_url = hide_passwords(url)
    return part if shown_url == url or part in shown_url else HIDDEN


def _password_hint(url: str) -> str:
    return "; write : / ? # [ ] @ and % in a password as %3A and so on" if "@" in url else ""


def _convert(text: str, value_type: Any) -> Any:
    if get_origin(value_type) is Literal:
        if text not in get_args(value_type):
            raise ValueError(f"expected one of {', '.join(get_args(value_type))}")
        return text
    if get_args(value_type):
        value_type = next(choice for choice in get_args(value_type) if choice is not type(None))
    if value_type is Size:
        return parse_size(text)
    if value_type is bool:
        if text not in ("true", "false"):
            raise ValueError("expected true or false")
        return text == "true"
    if value_type in (int, float):
        return _parse_non_negative(text, value_type)
    return text


def _parse_non_negative(text: str, number_type: Any) -> Any:
    try:
        number = number_type(text)
    except ValueError:
        raise ValueError("expected a number" if number_type is float else "expected a whole number") from None
    if not 0 <= number < float("inf"):
        raise ValueError("expected a finite number that is not negative")
    return number
