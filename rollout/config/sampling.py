"""The sampling keys: those of `engine.sampling` in the YAML, which are also those of `chat(sampling=…)`.

They have vLLM's names. Left out are the keys that would change the number of answers, or the evidence that comes with
them.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from rollout.config.problems import describe_problem
from rollout.errors import RolloutError
from rollout.value_limits import ValueCounter

TokenId = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
TextList = Annotated[list[Text], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
"""Several texts; one alone may be written without the list."""

_MAX_PROBLEMS_SHOWN = 5
_ALWAYS_WRITTEN = frozenset(("temperature", "top_p", "top_k", "max_tokens", "seed"))


class SamplingError(RolloutError):
    """A turn asks for a sampling key that there is not, or with a value that it cannot have."""


class SamplingConfig(BaseModel):
    """How the engine samples. A key that is null is not sent: the engine then does without."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float = Field(default=1.0, ge=0, description="0: always the likeliest token.")
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, description="0 and -1: no limit.")
    min_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(
        default=512, ge=1, description="Of one answer; null: as many as the model's context still holds."
    )
    min_tokens: int | None = Field(default=None, ge=0)
    seed: int | None = Field(default=None, ge=0, description="Each rollout and turn derives a seed of its own from it.")
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0)
    repetition_detection: dict[str, int] | None = Field(default=None, description="As vLLM's object of this name.")
    stop: TextList | None = Field(default=None, description="Texts that end an answer.")
    stop_token_ids: list[TokenId] | None = Field(default=None, description="Besides those of the model.")
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    bad_words: TextList | None = Field(default=None, description="Texts that no answer contains.")
    allowed_token_ids: list[TokenId] | None = Field(default=None, min_length=1)
    logit_bias: dict[TokenId, float] | None = Field(default=None, description="By token id.")
    structured_outputs: dict[str, Any] | None = Field(default=None, description="As vLLM's object of this name.")
    thinking_token_budget: int | None = Field(default=None, ge=0)
    detokenize: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    skip_reading_prefix_cache: bool | None = None
    extra_args: dict[str, Any] | None = Field(default=None, description="For plugins of the engine.")

    @model_serializer(mode="wrap")
    def _leave_out_unset_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write few keys, and give a configuration the digest that it had before the other keys existed."""
        return {key: value for key, value in serialize(self).items() if value is not None or key in _ALWAYS_WRITTEN}


SAMPLING_KEYS = frozenset(SamplingConfig.model_fields)


def check_sampling(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling keys of one turn as they go to the engine, checked as those of `engine.sampling` are.

    Raises:
        SamplingError: a key is unknown, or has a value that it cannot have.
    """
    if not isinstance(sampling, Mapping):
        raise SamplingError(
            f"chat(sampling=…) got a {type(sampling).__name__}; expected a mapping, such as {{'temperature': 0.5}}."
        )
    try:
        ValueCounter().add(sampling)
        checked = SamplingConfig.model_validate_json(json.dumps(dict(sampling), default=_plain_number), strict=True)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc']))}: {describe_problem(SamplingConfig, problem, problem['input'])}"
            for problem in error.errors(include_url=False)[:_MAX_PROBLEMS_SHOWN]
        ]
        text = "; ".join(problems)
        raise SamplingError(f"chat(sampling=…): {text}{'' if text.endswith('?') else '.'}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise SamplingError(f"chat(sampling=…): {error}.") from None
    known_keys = checked.model_dump(mode="json")
    return {key: known_keys.get(key) for key in checked.model_fields_set}


def _plain_number(value: Any) -> Any:
    """Return a number of numpy as one of Python; it is what an environment often computes."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"no JSON has a value of the type {type(value).__name__}")
