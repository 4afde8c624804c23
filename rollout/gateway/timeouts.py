"""How long the gateway waits for slow programs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatewayTimeouts:
    """The time limits of connections, in seconds.

    Attributes:
        first_request: the limit for the head of the first request of a connection.
        body: the limit for the whole body of a request.
        keepalive: the limit for the time between two requests of a connection.
    """

    first_request: float = 30.0
    body: float = 60.0
    keepalive: float = 75.0


DEFAULT_TIMEOUTS = GatewayTimeouts()
