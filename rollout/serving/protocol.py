"""Checks the body of `POST /inference/v1/generate` more strictly than vLLM.

vLLM ignores unknown keys, and answers some malformed requests with garbage. Tests with our engines should find such
mistakes. So our engines refuse unknown keys, and values that they do not support.
"""

import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError, model_validator
from pydantic_core import PydanticCustomError

TokenId = Annotated[int, Field(ge=0)]

LEAST_LOGIT_BIAS = -100.0
"""The lowest logit bias, which bans a token. The highest is 100, as in vLLM."""


class RequestRefused(Exception):
    """An engine refuses a request, and answers with this error.

    Attributes:
        message: what is wrong, and what to send instead.
        param: the name of the item that is wrong; None means the whole request.
        status: the HTTP status of the answer.
    """

    def __init__(self, message: str, *, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status


# Our engines do not support these keys of vLLM, so they allow only values that have no effect.
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
    "features": "only vLLM with our plugin for references does; send content_parts and unexpanded ids",
    "stream": "it sends the whole answer at once; leave this key out",
}


class StrictModel(BaseModel):
    """The base class of bodies and their parts. It refuses unknown keys, and does not convert values to other types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


_ModelT = TypeVar("_ModelT", bound=StrictModel)


def _read_token_keys(value: Any) -> Any:
    """Return a mapping whose keys are token ids as integers; in JSON, they are strings."""
    if not isinstance(value, dict):
        return value
    return {int(key) if isinstance(key, str) and key.isdecimal() else key: item for key, item in value.items()}


class SamplingParams(StrictModel):
    """The sampling parameters of a request.

    Attributes:
        temperature: the temperature; required, because the trainer must know it. At 0, the likeliest token is chosen.
        logprobs: the number of top log-probs for each token; required, because the trainer needs log-probs.
        max_tokens: the limit for the tokens of the answer; None means as many as the context allows.
        seed: with a seed, the answer depends only on the request; None means a random answer.
        stop_token_ids: tokens that end the answer, in addition to the model's own end token.
        allowed_token_ids: the only tokens that may be sampled; None means all tokens.
        logit_bias: the numbers to add to the logits of tokens, by token id.
    """

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
    """One image of a request.

    Attributes:
        type: the kind of the part; it must be `image_url`.
        url: a `data:` URI, or a `file://` URL in an allowed directory.
        uuid: the first half of the sha256 of the encoded bytes, in hexadecimal digits.
    """

    type: Literal["image_url"]
    url: str
    uuid: str = Field(pattern=r"^[0-9a-f]{32}$")


class GenerateBody(StrictModel):
    """The body of a request for an answer.

    Attributes:
        token_ids: the logical ids of the prompt, with one pad token per image.
        sampling_params: how to sample.
        content_parts: the images, in the order of the prompt.
        request_id: the id with which the request can be aborted.
        model: the name of the model; None means any model.
        return_token_ids: whether the answer also contains the expanded prompt.
        cache_salt: a text that vLLM adds to the keys of its prefix cache; our engines ignore it.
    """

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
    """Return a body as an object of the class `model`.

    Raises:
        RequestRefused: the body is not JSON, or a key is missing, unknown, of the wrong type, or not supported.
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
                "unsupported", "this engine does not support {key}; {instead}", {"key": key, "instead": alternative}
            )
    return {key: value for key, value in data.items() if key not in neutral_values}


def _to_request_refused(error: ValidationError) -> RequestRefused:
    """Return an error for the first problem of a body, with the name of the wrong item."""
    first_error, *other_errors = error.errors(include_url=False, include_input=False)
    reason = "unknown key" if first_error["type"] == "extra_forbidden" else first_error["msg"]
    suffix = f" ({len(other_errors)} more problems)" if other_errors else ""
    location = first_error["loc"]
    if first_error["type"] == "unsupported":
        location += (first_error["ctx"]["key"],)
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).removeprefix(".")
    return RequestRefused(f"{param or 'body'}: {reason}.{suffix}", param=param or None)
