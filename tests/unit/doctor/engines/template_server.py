"""A server that renders with a chat template, as vLLM does, for tests of the check `rendering`."""

import base64
import io
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import orjson
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image

from renderers_adapter.adapter import RendererAdapter
from rollout.engine.transport import EngineTransport


class TemplateServer(EngineTransport):
    """Renders messages with a chat template, and expands images with the layout of an adapter.

    Attributes:
        requests: the routes of all requests, in order.
    """

    def __init__(
        self,
        template: str,
        adapter: RendererAdapter,
        *,
        routes: tuple[str, ...] = ("/v1/chat/completions/render", "/tokenize"),
        owner: str = "vllm",
        has_call_parser: bool = True,
        template_arguments: Mapping[str, Any] | None = None,
        contents_are_texts: bool = False,
        tokenize_expands_images: bool = False,
    ) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        environment.globals["raise_exception"] = _raise
        self._template = environment.from_string(template)
        self._adapter = adapter
        self._routes = routes
        self._owner = owner
        self._has_call_parser = has_call_parser
        self._template_arguments = template_arguments or {}
        self._contents_are_texts = contents_are_texts
        self._tokenize_expands_images = tokenize_expands_images
        self.requests: list[str] = []

    async def send(self, method: str, url: str, body: bytes, *, session_id: str | None = None) -> tuple[int, bytes]:
        route = urlsplit(url).path
        self.requests.append(route)
        if route == "/v1/models":
            return 200, orjson.dumps({"data": [{"id": "tiny", "max_model_len": 4096, "owned_by": self._owner}]})
        if route not in self._routes:
            return 404, b'{"detail": "Not Found"}'
        request = orjson.loads(body)
        if request.get("tools") and route != "/tokenize" and not self._has_call_parser and "tool_choice" not in request:
            return 400, b'{"error": {"message": "tools need a parser"}}'
        try:
            ids = self._render(request)
        except (_TemplateRefusal, TypeError) as error:
            return 400, orjson.dumps({"error": {"message": str(error)}})
        if route != "/tokenize":
            return 200, orjson.dumps({"token_ids": self._expand(ids, request["messages"])})
        return 200, orjson.dumps(
            {"tokens": self._expand(ids, request["messages"]) if self._tokenize_expands_images else ids}
        )

    def _render(self, request: Mapping[str, Any]) -> list[int]:
        text = self._template.render(
            messages=[self._message(message) for message in request["messages"]],
            tools=request.get("tools"),
            add_generation_prompt=True,
            **{**self._template_arguments, **request.get("chat_template_kwargs", {})},
        )
        return self._adapter.tokenizer.encode(text)

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        content = message["content"]
        parts = [] if content is None else [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts = [part if part["type"] == "text" else {"type": "image"} for part in parts]
        is_text = all(part["type"] == "text" for part in parts)
        rendered: dict[str, Any] = {"role": message["role"], "content": parts}
        if is_text and (message["role"] == "tool" or self._contents_are_texts):
            rendered["content"] = "\n".join(part["text"] for part in parts)
        if "reasoning" in message:
            rendered["reasoning_content"] = message["reasoning"]
        if "tool_calls" in message:
            rendered["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
                for call in message["tool_calls"]
            ]
        if "name" in message:
            rendered["name"] = message["name"]
        return rendered

    def _expand(self, ids: list[int], messages: list[Any]) -> list[int]:
        if (geometry := self._adapter.geometry) is None:
            return ids
        parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
        sizes = [_image_size(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
        lengths = iter([geometry.layout(width=width, height=height).tokens for width, height in sizes])
        pad_id = self._adapter.pad_id
        return [token for one in ids for token in ([one] * next(lengths) if one == pad_id else [one])]


def _image_size(url: str) -> tuple[int, int]:
    if url.startswith("file://"):
        file: Any = url.removeprefix("file://")
    else:
        file = io.BytesIO(base64.b64decode(url.partition(",")[2]))
    with Image.open(file) as image:
        return image.size


class _TemplateRefusal(Exception):
    pass


def _raise(message: str) -> None:
    raise _TemplateRefusal(message)
