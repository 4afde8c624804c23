"""The addresses of one endpoint, and the environment variables in which SDKs and command-line agents look for them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

KEY_PATH = "/key/"
"""The beginning of a path that contains the key."""
_PROXY_VARIABLES = ("NO_PROXY", "no_proxy")


@dataclass(frozen=True, slots=True)
class EndpointAddresses:
    """The addresses of one endpoint.

    Attributes:
        address: the HOST:PORT of the server, as programs reach it.
        model: the name of the model, without a slash, because a slash confuses some clients.
        key: the key of the endpoint.
        unix_socket: the path of the server's unix socket; None if it has none.
    """

    address: str
    model: str
    key: str = field(repr=False)
    unix_socket: Path | None = None

    @property
    def anthropic_base_url(self) -> str:
        """The address for clients of Anthropic's API."""
        return f"http://{self.address}"

    @property
    def base_url(self) -> str:
        """The address for clients of OpenAI's APIs."""
        return f"{self.anthropic_base_url}/v1"

    @property
    def keyed_anthropic_base_url(self) -> str:
        """The address for clients of Anthropic's API, with the key in the path."""
        return f"{self.anthropic_base_url}{KEY_PATH}{self.key}"

    @property
    def keyed_base_url(self) -> str:
        """The address for clients of OpenAI's APIs, with the key in the path."""
        return f"{self.keyed_anthropic_base_url}/v1"

    def environ(self) -> Mapping[str, str]:
        """Return the environment variables for a program. A proxy of the machine must not get the requests."""
        host = self.address.rpartition(":")[0].strip("[]")
        return {
            "OPENAI_BASE_URL": self.base_url,
            "OPENAI_API_BASE": self.base_url,
            "OPENAI_API_KEY": self.key,
            "OPENAI_MODEL": self.model,
            "ANTHROPIC_BASE_URL": self.anthropic_base_url,
            "ANTHROPIC_API_KEY": self.key,
            "ANTHROPIC_MODEL": self.model,
            **dict.fromkeys(_PROXY_VARIABLES, host),
        }
