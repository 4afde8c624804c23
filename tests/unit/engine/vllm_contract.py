"""Reads the recorded contracts of vLLM, checks requests against them, and compares them.

`scripts/record_vllm_contract.py` writes the contracts, and explains their form.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

CONTRACTS = Path(__file__).parent / "contracts"
VERSIONS = tuple(
    sorted(
        (file.stem.removeprefix("vllm-") for file in CONTRACTS.glob("vllm-*.json")),
        key=lambda version: [int(number) for number in version.split(".")],
    )
)
"""The recorded versions, the oldest first."""
PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "null": (type(None),),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}
CHECKED_KEYWORDS = {
    *(
        "additionalProperties",
        "anyOf",
        "const",
        "default",
        "enum",
        "exclusiveMinimum",
        "items",
        "maxItems",
        "maxLength",
    ),
    *("maximum", "minItems", "minLength", "minimum", "model", "prefixItems", "required", "type"),
}


@dataclass(frozen=True, slots=True)
class Contract:
    """What one version of vLLM says about its routes."""

    facts: Mapping[str, Any]

    @classmethod
    def of_file(cls, file: Path) -> "Contract":
        """Read a recorded contract."""
        return cls(orjson.loads(file.read_bytes()))

    @classmethod
    def of_version(cls, version: str) -> "Contract":
        """Read the recorded contract of a version."""
        return cls.of_file(CONTRACTS / f"vllm-{version}.json")

    def model_of(self, route: str, part: str) -> str:
        """Return the name of the model of a route's `request`, or of its answer, such as `status 200`."""
        name: str = self.facts["routes"][route][part]["model"]
        return name

    def has_field(self, model: str, path: str) -> bool:
        """Whether a model has a field. The path leads through models, lists and mappings: `choices.logprobs`."""
        name, _, rest = path.partition(".")
        schema = self.facts["models"][model].get(name)
        return schema is not None and (not rest or any(self.has_field(below, rest) for below in _models_in(schema)))

    def problems(self, value: Any, model: str, where: str = "") -> Iterator[str]:
        """Yield what the model does not know or refuse in an object: unknown keys, missing keys, types and limits."""
        fields = self.facts["models"][model]
        for key in value.keys() - fields.keys():
            yield f"{where}{key}: {model} does not have this key"
        for key, schema in fields.items():
            if key in value and key != "*":
                yield from self._value_problems(value[key], schema, f"{where}{key}")
            elif key != "*" and schema.get("required"):
                yield f"{where}{key}: {model} requires this key"

    def _value_problems(self, value: Any, schema: Mapping[str, Any], where: str) -> Iterator[str]:
        if unknown := schema.keys() - CHECKED_KEYWORDS:
            raise NotImplementedError(f"{where}: this check does not know the keywords {sorted(unknown)} of a schema")
        if "anyOf" in schema:
            found = [list(self._value_problems(value, choice, where)) for choice in schema["anyOf"]]
            if all(found):
                yield from min(found, key=len)
            return
        if "model" in schema:
            if not isinstance(value, dict):
                yield f"{where}: {value!r} is not an object"
            elif schema["model"] in self.facts["models"]:
                yield from self.problems(value, schema["model"], f"{where}.")
            return
        if "type" in schema and not _has_type(value, schema["type"]):
            yield f"{where}: {value!r} is not of the type {schema['type']}"
            return
        yield from _limit_problems(value, schema, where)
        if isinstance(value, list):
            for index, item in enumerate(value):
                item_schemas = schema.get("prefixItems", ())
                item_schema = item_schemas[index] if index < len(item_schemas) else schema.get("items", {})
                yield from self._value_problems(item, item_schema, f"{where}[{index}]")
        if isinstance(value, dict) and isinstance(schema.get("additionalProperties"), dict):
            for key, item in value.items():
                yield from self._value_problems(item, schema["additionalProperties"], f"{where}.{key}")


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Yield one line for each fact in which two contracts differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            place = f"{where} > {key}" if where else key
            if key not in new:
                yield f"{place}: removed"
            elif key not in old:
                yield f"{place}: added"
            else:
                yield from differences(old[key], new[key], place)
    elif old != new:
        yield f"{where}: {orjson.dumps(old).decode()} became {orjson.dumps(new).decode()}"


def _models_in(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        for part in schema:
            yield from _models_in(part)
    elif isinstance(schema, dict):
        if "model" in schema:
            yield schema["model"]
        for keyword in ("anyOf", "items", "additionalProperties"):
            yield from _models_in(schema.get(keyword))


def _has_type(value: Any, name: str) -> bool:
    return isinstance(value, PYTHON_TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _limit_problems(value: Any, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is not one of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        yield f"{where}: {value!r} is not {schema['const']!r}"
    size = len(value) if isinstance(value, list | str) else value
    for keyword in ("minItems", "minLength", "minimum"):
        if keyword in schema and size < schema[keyword]:
            yield f"{where}: {size} is below {schema[keyword]} ({keyword})"
    for keyword in ("maxItems", "maxLength", "maximum"):
        if keyword in schema and size > schema[keyword]:
            yield f"{where}: {size} is above {schema[keyword]} ({keyword})"
    if "exclusiveMinimum" in schema and size <= schema["exclusiveMinimum"]:
        yield f"{where}: {size} is not above {schema['exclusiveMinimum']}"
