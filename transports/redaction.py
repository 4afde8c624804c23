"""Hides the passwords in a text before it is shown. The text is a URL, which may be malformed, or another value."""

from __future__ import annotations

import re

HIDDEN = "***"
SECRET_NAME = re.compile(
    r"(?:.*[\W_])?(?:password|passwd|passphrase|pass|pwd|secret|token|(?:api)?key|auth|authorization|credentials?)(?:_env)?",
    re.IGNORECASE | re.DOTALL,
)
"""Matches the name of a key, or of a URL's option, if its value is a secret."""

_REFERENCES = re.compile(r"(?:\$\{[A-Za-z_][A-Za-z0-9_]*\})+")
"""Matches environment variables without a default, as in `${NAME}`. They name a secret and do not contain it."""
_LOGIN_START = re.compile(r"(?<!file)://|(?<=file)://(?!/|localhost/|\{)", re.IGNORECASE)
"""Matches the text before a user and a password. In a file:// URL, an @ may be a part of the path."""
_USER = re.compile(r"[\w.~%${}-]*")
_LONE_USER = re.compile(r"(?<!hf)(?P<start>://)(?P<user>[^/?#:]+)@", re.IGNORECASE)
"""Matches a user without a password, because it is often a token. hf://name@revision has no user."""
_PORT = re.compile(r"(?P<host>://(?!\[[0-9A-Fa-f:.%]*\])\[?[^\s:/?#\]]*:)(?P<port>[^/?#\s]+)")
_OPTION = re.compile(r"(?<![^?&;\s])(?P<name>[\w.-]+)=(?P<value>[^&]+)")


def hide_passwords(text: str) -> str:
    """Return the text with `***` in the place of its passwords. The text must be one value, such as a URL.

    A password in a malformed URL may contain any character. So everything between the user and the last @ is hidden,
    and a port that is not a number is hidden, too. A user without a password is hidden, because it may be a token. A
    reference (`${NAME}`) stays.
    """
    return _OPTION.sub(_hide_option, _hide_login(text))


def _hide_login(text: str) -> str:
    before_at, _, after_at = text.rpartition("@")
    login_start = _LOGIN_START.search(text)
    if login_start is None and "://" in text:
        return text
    start = login_start.end() if login_start is not None else 0
    user, colon, password = before_at[start:].partition(":")
    if not colon:
        return _PORT.sub(_hide_port, hide_lone_user(text))
    if _REFERENCES.fullmatch(password):
        return text
    shown_user = f"{user}:" if _USER.fullmatch(user) else ""
    return f"{before_at[:start]}{shown_user}{HIDDEN}@{after_at}"


def hide_lone_user(text: str) -> str:
    """Return the text with `***` in the place of a user without a password. A reference (`${NAME}`) stays."""
    return _LONE_USER.sub(_hide_user, text)


def _hide_user(match: re.Match[str]) -> str:
    return match[0] if _REFERENCES.fullmatch(match["user"]) else f"{match['start']}{HIDDEN}@"


def _hide_port(match: re.Match[str]) -> str:
    is_port = match["port"].isdecimal() or _REFERENCES.fullmatch(match["port"])
    return match[0] if is_port else f"{match['host']}{HIDDEN}"


def _hide_option(match: re.Match[str]) -> str:
    is_secret = SECRET_NAME.fullmatch(match["name"]) and not _REFERENCES.fullmatch(match["value"])
    return f"{match['name']}={HIDDEN}" if is_secret else match[0]
