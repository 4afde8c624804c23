"""The clients that play one planned conversation in each dialect, and where they send it."""

from tests.unit.gateway.dialect_clients import (
    PARAMETERS,
    TOOL_NAMES,
    ChatClient,
    DialectClient,
    MessagesClient,
    ResponsesClient,
)

PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
CHAT_TOOLS = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in TOOL_NAMES]
_CLIENTS: dict[str, type[DialectClient]] = {
    "chat": ChatClient,
    "responses": ResponsesClient,
    "messages": MessagesClient,
}


def new_client(dialect: str) -> DialectClient:
    """Return a client of a dialect that repeats answers as it got them."""
    return _CLIENTS[dialect](None)
