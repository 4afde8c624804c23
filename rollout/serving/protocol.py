"""The body of `POST /inference/v1/generate`, read more strictly than vLLM reads it.

vLLM ignores unknown keys and answers some malformed requests with garbage. Tests against this engine should find such
mistakes, so unknown keys are refused here, and so is every value that the engine cannot honour, by its name.
"""

import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError, model_validator
from pydantic_core import PydanticCustomError

TokenId = Annotated[int, Field(ge=0)]

LEAST_LOGIT_BIAS = -100.0
"""As in vLLM, a bias lies between this and its opposite, and the least one bans a token."""


class RequestRefused(Exception):
    """A request that is answered with an error instead of tokens; `param` names the item that is wrong."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status


# What vLLM knows and no engine of ours can do: the neutral values that are allowed, and for some what to do instead.
_NEUTRAL_SAMPLING_VALUES: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop": (None, []),
    "bad_words": (None, []),
    "logprob_token_ids": (None,),
    "prompt_logprobs": (None,),
    "structured_outputs": (None,),
    "extra_args": (None,),
    "detokenize": (True, False),
    "skip_special_tokens": (True, False),
    "spaces_between_special_tokens": (True, False),
    "include_stop_str_in_output": (True, False),
}
_NEUTRAL_BODY_VALUES: Mapping[str, tuple[Any, ...]] = {
    "features": (None,),
    "stream": (False, None),
    "stream_options": (None,),
    "output_mode": ("tokens",),
    "priority": (0,),
    "kv_transfer_params": (None,),
    "ec_transfer_params": (None,),
}
_ALTERNATIVES = {
    "features": "it needs a vLLM with the plugin that resolves references; send content_parts and unexpanded ids",
    "stream": "the whole answer comes at once",
}


class StrictModel(BaseModel):
    """A body, or a part of one, without unknown keys or values that are only nearly of their type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


_ModelT = TypeVar("_ModelT", bound=StrictModel)


def _read_token_keys(value: Any) -> Any:
    """JSON has texts as keys."""
    if not isinstance(value, dict):
        return value
    return {int(key) if isinstance(key, str) and key.isdecimal() else key: item for key, item in value.items()}


class SamplingParams(StrictModel):
    """How to sample. `temperature` and `logprobs` are required: a trainer has to know both sides of every sample."""

    temperature: float = Field(ge=0, allow_inf_nan=False)
    logprobs: int = Field(ge=0, le=20)
    max_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None
    stop_token_ids: list[TokenId] | None = None
    allowed_token_ids: list[TokenId] | None = Field(default=None, min_length=1)
    logit_bias: Annotated[dict[TokenId, FiniteFloat] | None, BeforeValidator(_read_token_keys)] = None

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral_values(cls, data: Any) -> Any:
        return _remove_neutral_values(data, _NEUTRAL_SAMPLING_VALUES)


class ContentPart(StrictModel):
    """One image, by reference; `uuid` is the first half of the sha256 of its encoded bytes."""

    type: Literal["image_url"]
    url: str
    uuid: str = Field(pattern=r"^[0-9a-f]{32}$")


class GenerateBody(StrictModel):
    """A whole request, with one pad token per image in `token_ids`."""

    token_ids: list[TokenId] = Field(min_length=1)
    sampling_params: SamplingParams
    content_parts: list[ContentPart] | None = None
    request_id: str = Field(default_factory=lambda: uuid.uuid4().hex, min_length=1)
    model: str | None = None
    return_token_ids: bool | None = None
    cache_salt: str | None = Field(default=None, min_length=1, max_length=1024)

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral_values(cls, data: Any) -> Any:
        return _remove_neutral_values(data, _NEUTRAL_BODY_VALUES)


def parse_body(model: type[_ModelT], body: bytes) -> _ModelT:
    """Read a body.

    Raises:
        RequestRefused: it is not JSON, a key is missing, unknown or of the wrong type, or it cannot be honoured.
    """
    try:
        return model.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise RequestRefused(f"The body is not JSON: {error}.") from error
    except ValidationError as error:
        raise _to_request_refused(error) from None


def _remove_neutral_values(data: Any, neutral_values: Mapping[str, tuple[Any, ...]]) -> Any:
    if not isinstance(data, dict):
        return data
    for key, allowed_values in neutral_values.items():
        if key in data and data[key] not in allowed_values:
            alternative = _ALTERNATIVES.get(key, f"leave it out or send {orjson.dumps(allowed_values[0]).decode()}")
            raise PydanticCustomError(
                "cannot_honour", "this engine cannot honour {key}: {instead}", {"key": key, "instead": alternative}
            )
    return {key: value for key, value in data.items() if key not in neutral_values}


def _to_request_refused(error: ValidationError) -> RequestRefused:
    """The refusal for the first fault of a body, with the name of its item."""
    first_error, *other_errors = error.errors(include_url=False, include_input=False)
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first_error["loc"]).removeprefix(
        "."
    )
    reason = "unknown key" if first_error["type"] == "extra_forbidden" else first_error["msg"]
    suffix = f" ({len(other_errors)} more faults)" if other_errors else ""
    if first_error["type"] == "cannot_honour":
        param = f"{param}.{first_error['ctx']['key']}".removeprefix(".")
    return RequestRefused(f"{param or 'body'}: {reason}.{suffix}", param=param or None)
