"""Record what the installed vLLM says about the routes that rollout uses, so that a test can compare versions.

    export PYTHONPATH=rollout/serving/vllm_shim
    .venv-vllm/bin/python scripts/record_vllm_contract.py tests/unit/engine/contracts

It needs no model and starts no server. It writes `vllm-VERSION.json` into the directory. Its parts are:

- `vllm`: the version.
- `routes`: the parameters, the request and the answer of each route. There is also a digest of the text of the route,
  because vLLM describes some changes of behaviour only there.
- `exchanges`: requests of the routes without types, what vLLM calls for each of them, and how it answers. One of them
  is a request that vLLM refuses.
- `refusal during a pause`: the answer to a new request while the engine is paused with `wait` or `abort`. It is null if
  vLLM lets the request wait.
- `models`: the fields of the requests and answers as JSON schemas. `model` names another model, and `required` says
  that the field must be there. The field `*` says what happens to unknown keys. Without it, they are ignored.
"""

import asyncio
import hashlib
import importlib
import json
import os
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from pydantic import BaseModel

os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # vLLM reads it when it adds the routes for new weights

import vllm
from fastapi import FastAPI
from vllm.entrypoints.launchers.api_server.routers import register_api_routers
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.v1.engine.core import EngineCoreProc

ROUTES = (
    "GET /health",
    "GET /is_paused",
    "GET /v1/models",
    "GET /weight_info",
    "POST /collective_rpc",
    "POST /inference/v1/abort_requests",
    "POST /inference/v1/generate",
    "POST /pause",
    "POST /reset_encoder_cache",
    "POST /reset_prefix_cache",
    "POST /resume",
    "POST /tokenize",
    "POST /update_weight_version",
    "POST /v1/chat/completions/render",
)
SENT_MODELS = {"POST /tokenize": "TokenizeCompletionRequest"}
"""The model that rollout sends, for routes that accept several."""
UNDECLARED_ANSWERS = {
    "GET /v1/models": "vllm.entrypoints.serve.engine.protocol:ModelList",
    "POST /inference/v1/generate": "vllm.entrypoints.scale_out.token_in_token_out.protocol:GenerateTokensResponse",
    "POST /tokenize": "vllm.entrypoints.serve.tokenize.protocol:TokenizeResponse",
}
"""The models of answers that vLLM does not declare."""
SENT_FIELDS = {"ChatCompletionRequest": ("messages", "model")}
"""The fields that rollout sends of large models. Only these and the required fields of such models are recorded."""
EXCHANGES: Mapping[str, Any] = {
    "GET /is_paused": None,
    "GET /weight_info": None,
    "POST /collective_rpc": {"method": "reload_weights", "kwargs": {"weights_path": "/runs/one/policy"}},
    "POST /inference/v1/abort_requests": {"request_ids": ["generate-tokens-r-0.0"]},
    "POST /inference/v1/generate": {"token_ids": [1], "sampling_params": {"temperature": -1.0}},
    "POST /pause?mode=abort&clear_cache=false": None,
    "POST /pause?mode=keep&clear_cache=false": None,
    "POST /pause?mode=wait&clear_cache=false": None,
    "POST /reset_encoder_cache": None,
    "POST /reset_prefix_cache": None,
    "POST /resume": None,
    "POST /update_weight_version": {"new_version": "7"},
}
"""Requests of routes without types, and one that vLLM refuses, with their bodies."""
ENGINE_RESULTS = {
    "collective_rpc": [None],
    "get_weight_version": "7",
    "is_paused": True,
    "reset_prefix_cache": True,
}
"""What the engine of the exchanges returns."""
TEXT_KEYS = frozenset(("title", "description", "examples"))


class RecordingEngine:
    """Stands in for vLLM's engine, and keeps the calls of its methods."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        async def return_result() -> Any:
            return ENGINE_RESULTS.get(method)

        def record(*arguments: Any, **keywords: Any) -> Awaitable[Any]:
            self.calls.append([method, *arguments, keywords])
            return return_result()

        return record


class Models:
    """Collects the fields of models while their schemas are simplified."""

    def __init__(self) -> None:
        self.fields: dict[str, dict[str, Any]] = {}

    def simplify(self, schema: Any, definitions: Mapping[str, Any], *, nested: bool = True) -> Any:
        """Return a schema without texts and null defaults. With `nested`, record the models that it names."""
        if isinstance(schema, list):
            return [self.simplify(part, definitions, nested=nested) for part in schema]
        if not isinstance(schema, dict):
            return schema
        name = schema["$ref"].rpartition("/")[2] if "$ref" in schema else schema.get("title", "").replace(" ", "")
        target = definitions[name] if "$ref" in schema else schema
        if "properties" in target:
            if nested:
                self.record(name, target, definitions)
            return {"model": name, **{key: schema[key] for key in ("default",) if schema.get(key) is not None}}
        return {
            key: value if key in ("default", "enum", "const") else self.simplify(value, definitions, nested=nested)
            for key, value in (target | schema).items()
            if key != "$ref" and key not in TEXT_KEYS and (key, value) != ("default", None)
        }

    def record(self, name: str, schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> None:
        """Record the fields of a model, and of all models below it."""
        if name in self.fields:
            return
        fields = self.fields[name] = {}
        required = schema.get("required", ())
        for field, field_schema in schema["properties"].items():
            if name not in SENT_FIELDS or field in (*SENT_FIELDS[name], *required):
                fields[field] = self.simplify(field_schema, definitions, nested=name not in SENT_FIELDS)
                if field in required:
                    fields[field]["required"] = True
        if "additionalProperties" in schema:
            fields["*"] = "kept" if schema["additionalProperties"] else "refused"


def record_routes(app: FastAPI, models: Models) -> dict[str, Any]:
    """Return the parameters, the models and the statuses of every route in `ROUTES`."""
    openapi = app.openapi()
    definitions = openapi["components"]["schemas"]
    routes = {}
    for route in ROUTES:
        method, path = route.split()
        operation = openapi["paths"].get(path, {}).get(method.lower())
        if operation is None:
            raise SystemExit(f"vLLM {vllm.__version__} has no route {route}.")
        facts = {
            f"parameter {parameter['name']}": models.simplify(parameter["schema"], definitions)
            for parameter in operation.get("parameters", ())
        }
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        if route in SENT_MODELS:
            body = {"$ref": SENT_MODELS[route]}
        if body is not None:
            facts["request"] = models.simplify(body, definitions)
        if route in UNDECLARED_ANSWERS:
            module, _, name = UNDECLARED_ANSWERS[route].partition(":")
            model: type[BaseModel] = getattr(importlib.import_module(module), name)
            schema = model.model_json_schema(mode="serialization")
            models.record(name, schema, schema.get("$defs", {}))
            facts["status 200"] = {"model": name}
        for status, answer in operation["responses"].items():
            if status == "422":
                continue  # FastAPI declares it, but vLLM answers 400 in its place
            schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
            facts.setdefault(f"status {status}", models.simplify(schema, definitions))
        facts["digest of its text"] = hashlib.sha256(operation.get("description", "").encode()).hexdigest()[:12]
        routes[route] = facts
    return routes


async def record_exchanges(app: FastAPI) -> dict[str, Any]:
    """Send every request of `EXCHANGES` to the routes, and return the calls of the engine and the answers."""
    found = {}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine") as client:
        for exchange, body in EXCHANGES.items():
            method, target = exchange.split()
            app.state.engine_client = engine = RecordingEngine()
            answer = await client.request(method, target, json=body)
            content = answer.json() if answer.content else None
            found[exchange] = {"body": body, "calls": engine.calls, "status": answer.status_code, "answer": content}
    return found


async def record_refusal_during_pause(app: FastAPI) -> dict[str, Any] | None:
    """Let vLLM refuse a request as a paused engine does, and return the answer; None if this version refuses none."""
    reject = getattr(EngineCoreProc, "_reject_add_while_paused", None)
    if reject is None:
        return None
    errors: list[Any] = []
    engine = SimpleNamespace(
        reject_new_requests=True,
        scheduler=SimpleNamespace(has_request=lambda request_id: False),
        _send_finish_outputs_to_client=lambda *arguments: errors.append(arguments[-1]),
    )
    reject(
        engine,
        SimpleNamespace(request_id="r-0.0", client_index=0, abort_immediately=False, kv_transfer_params=None),
    )
    (error,) = errors

    async def refuse() -> None:
        raise error.to_exception()

    app.add_api_route("/refused", refuse)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine") as client:
        answer = await client.get("/refused")
    return {"status": answer.status_code, "answer": answer.json()}


def write_lines(section: Any, depth: int = 1) -> str:
    """Return a section as JSON, with one line for each fact."""
    if depth > 3 or not isinstance(section, dict) or not section:
        return json.dumps(section, sort_keys=True)
    indent = " " * depth
    lines = [f"{indent}{json.dumps(key)}: {write_lines(section[key], depth + 1)}" for key in sorted(section)]
    return "{\n" + ",\n".join(lines) + "\n" + " " * (depth - 1) + "}"


def main(directory: Path) -> None:
    """Write the contract of the installed vLLM into the directory."""
    app = FastAPI()
    app.state.args = Namespace(enable_scale_out=True, log_error_stack=False)
    register_api_routers(app.state.args, app, ("generate",))
    init_exception_handler(app)
    models = Models()
    version = vllm.__version__.partition("+")[0]
    contract = {
        "vllm": version,
        "routes": record_routes(app, models),
        "exchanges": asyncio.run(record_exchanges(app)),
        "refusal during a pause": asyncio.run(record_refusal_during_pause(app)),
        "models": models.fields,
    }
    file = directory / f"vllm-{version}.json"
    file.write_text(write_lines(contract) + "\n")
    print(file)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python scripts/record_vllm_contract.py DIRECTORY")
    main(Path(sys.argv[1]))
