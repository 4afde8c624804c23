"""The section `gateway`: where programs reach the gateway, and what their requests may do."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from rollout.config.sections import ConfigPath, Section

DEFAULT_MAX_BODY_BYTES = 64 << 20
MIN_BODY_BYTES = 1 << 10
MAX_BODY_BYTES = 1 << 30
MAX_SOCKET_PATH_BYTES = 95
"""Systems accept about 104 bytes. A worker of a launch adds a point and the id of its process, up to 8 bytes."""

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?!.{{254}}){_LABEL}(?:\.{_LABEL})*")
_ANY_ADDRESSES = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - no address is bound here
"""For each address that listens everywhere, the address with which this machine reaches it."""
_MAX_PORT = 65535


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return "%" not in text  # a zone is valid on one machine only


def _check_host(host: str) -> str:
    if not (_HOST_NAME.fullmatch(host) or _is_ipv6(host)):
        raise ValueError("expected a host name or an IP address alone, such as 127.0.0.1")
    return host


def _split_advertised(address: str) -> tuple[str, int | None]:
    """Return the host, without the brackets of IPv6, and the port. Raises ValueError."""
    host, port = address, ""
    if (found := re.fullmatch(r"\[([^\[\]]*)\](?::([0-9]{1,5}))?", address)) is not None:
        host, port = found[1], found[2] or ""
        is_host = _is_ipv6(host)
    elif (found := re.fullmatch(r"([^:]*):([0-9]{1,5})", address)) is not None:
        host, port = found[1], found[2]
        is_host = _HOST_NAME.fullmatch(host) is not None
    else:
        is_host = _HOST_NAME.fullmatch(host) is not None
    if not is_host or (port and not 1 <= int(port) <= _MAX_PORT):
        raise ValueError(
            "expected a host name or HOST:PORT without a scheme and a path, such as gateway.example:8080; an IPv6 "
            "address needs brackets"
        )
    return host, int(port) if port else None


def _check_advertised(address: str) -> str:
    _split_advertised(address)
    return address


def _check_socket_path(path: Path) -> Path:
    if (length := len(str(path).encode("utf-8", "surrogateescape"))) > MAX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"the path of the socket, with its directory, has {length} bytes, and the limit of systems for a socket "
            f"allows {MAX_SOCKET_PATH_BYTES}; use a shorter one, such as /tmp/gateway.sock"
        )
    return path


class GatewayLimits(Section):
    """The budget of one rollout of a program. At a limit, the program gets a last answer, which is not the policy's."""

    turns: int | None = Field(default=None, ge=1)
    """The limit for the turns of a rollout. null: no limit."""
    tokens: int | None = Field(default=None, ge=1)
    """The limit for the tokens that the policy samples in a rollout. null: no limit."""
    seconds: float | None = Field(default=None, gt=0)
    """Seconds that a rollout may take turns, from the opening of its endpoint. null: worker.rollout_timeout alone
    counts."""
    parallel: int = Field(default=16, ge=1)
    """The limit for the requests of one rollout that the engines answer at the same time; others wait."""


class GatewayConfig(Section):
    """The gateway: where programs reach it, and what their requests may do."""

    host: Annotated[str, AfterValidator(_check_host)] = "127.0.0.1"
    """The address to listen at. 0.0.0.0: programs in containers or on other machines reach it, too."""
    port: int = Field(default=0, ge=0, le=_MAX_PORT)
    """The port to listen at. 0: a free port. The workers of a launch always take free ports."""
    advertise: Annotated[str, AfterValidator(_check_advertised)] | None = None
    """The address that programs get, as HOST or HOST:PORT; a host alone gets the port of the server. null: the address
    of gateway.host; 127.0.0.1 for 0.0.0.0. The workers of a launch leave the port out, because each has another one."""
    unix_socket: Annotated[ConfigPath, AfterValidator(_check_socket_path)] | None = None
    """The path of a unix socket at which the gateway listens, too. A worker of a launch adds a point and the id of its
    process. null: none."""
    echo: Literal["tolerant", "exact"] = "tolerant"
    """How far a message may differ from an answer of the policy and still be that answer. tolerant: also with other
    white space, key order or escapes, without its reasoning, and with other ids. exact: not at all."""
    sampling: Literal["ours", "theirs"] = "ours"
    """Which temperature, top_p and the like count. ours: those of engine.sampling. theirs: those of the program."""
    constrained: Literal["refuse", "allow"] = "refuse"
    """What happens to a request that changes the distribution in another way, such as response_format. refuse: it gets
    an error. allow: it is played, and its step says so."""
    max_body_bytes: int = Field(default=DEFAULT_MAX_BODY_BYTES, ge=MIN_BODY_BYTES, le=MAX_BODY_BYTES)
    """The limit for the bytes of one request, with its images."""
    limits: GatewayLimits = GatewayLimits()
    """The budget of one rollout."""

    def for_launched_worker(self, process_id: int) -> "GatewayConfig":
        """Return the section for a worker of a launch: no two workers may listen at the same port or socket."""
        advertise, socket = self.advertise, self.unix_socket
        if advertise is not None and (split := _split_advertised(advertise))[1] is not None:
            advertise = _in_url(split[0])
        if socket is not None:
            socket = socket.with_name(f"{socket.name}.{process_id}")
        return self.model_copy(update={"port": 0, "advertise": advertise, "unix_socket": socket})

    def advertised_address(self, port: int) -> str:
        """Return the HOST:PORT that programs get; the server listens at `port`."""
        if self.advertise is not None:
            host, advertised_port = _split_advertised(self.advertise)
            return f"{_in_url(host)}:{advertised_port or port}"
        return f"{_in_url(_ANY_ADDRESSES.get(self.host, self.host))}:{port}"

    def identity(self) -> dict[str, Any]:
        """Return the keys that decide what is played and are not the defaults; no addresses."""
        addresses = {"host", "port", "advertise", "unix_socket"}
        return self.model_dump(mode="json", exclude=addresses, exclude_defaults=True)


def _in_url(host: str) -> str:
    """Return a host as it is in a URL, where an IPv6 address has brackets."""
    return f"[{host}]" if ":" in host else host
