"""The sampling keys of `engine.sampling` in the YAML and of `chat(sampling=…)`.

They have vLLM's names. Keys that change the number of answers, or which data an answer contains, are not
allowed.
"""

import hashlib
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
"""A list of strings; a single string may be written without the list."""

_MAX_PROBLEMS_SHOWN = 5
_ALWAYS_WRITTEN = frozenset(("temperature", "top_p", "top_k", "max_tokens", "seed"))


class SamplingError(RolloutError):
    """A turn has an unknown sampling key, or a value that is not valid for its key."""


class SamplingConfig(BaseModel):
    """How the engine samples. A key that is null is not sent, so that the engine uses its own default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    temperature: float = Field(default=1.0, ge=0)
    """Divides the logits before sampling. 0: always use the most likely token."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Sample only from the most likely tokens; their probabilities add up to this value."""
    top_k: int | None = Field(default=None, ge=-1)
    """Sample only from this number of the most likely tokens. 0 or -1: no limit."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Sample only tokens that have at least this share of the top probability."""
    max_tokens: int | None = Field(default=512, ge=1)
    """The limit for the tokens of an answer. null: as many as fit in the model's context."""
    min_tokens: int | None = Field(default=None, ge=0)
    """The number of tokens before which no end token or stop text ends an answer."""
    seed: int | None = Field(default=None, ge=0)
    """The seed from which each turn of each rollout derives its own seed."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Subtracted from the logit of each token that is already in the answer."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Like presence_penalty, but for each time that the token is in the answer."""
    repetition_penalty: float | None = Field(default=None, gt=0)
    """Above 1: tokens that are already in the prompt or the answer become less likely."""
    repetition_detection: dict[str, int] | None = None
    """When to end an answer that repeats itself, as in vLLM's object of this name."""
    stop: TextList | None = None
    """Texts that end an answer."""
    stop_token_ids: list[TokenId] | None = None
    """Token ids that end an answer, in addition to the end tokens of the model."""
    include_stop_str_in_output: bool | None = None
    """Whether the answer keeps the text that ended it."""
    ignore_eos: bool | None = None
    """Whether an answer continues after the model's end token."""
    bad_words: TextList | None = None
    """Texts that no answer may contain."""
    allowed_token_ids: list[TokenId] | None = Field(default=None, min_length=1)
    """The only token ids that the engine may sample."""
    logit_bias: dict[TokenId, float] | None = None
    """The number that is added to the logit of each of these token ids."""
    structured_outputs: dict[str, Any] | None = None
    """A grammar or a schema for answers, as in vLLM's object of this name."""
    thinking_token_budget: int | None = Field(default=None, ge=0)
    """The limit for the tokens of reasoning in one answer."""
    detokenize: bool | None = None
    """Whether the engine also returns text for the tokens."""
    skip_special_tokens: bool | None = None
    """Whether the engine leaves special tokens out of its text."""
    spaces_between_special_tokens: bool | None = None
    """Whether the engine writes spaces between special tokens in its text."""
    skip_reading_prefix_cache: bool | None = None
    """Whether the engine computes the whole prompt instead of using its prefix cache."""
    extra_args: dict[str, Any] | None = None
    """Arguments for plugins of the engine, by name."""

    @model_serializer(mode="wrap")
    def _leave_out_unset_keys(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out keys that are not set, so that adding a key to this class changes no configuration's digest."""
        return {key: value for key, value in serialize(self).items() if value is not None or key in _ALWAYS_WRITTEN}


SAMPLING_KEYS = frozenset(SamplingConfig.model_fields)


def check_sampling(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Check the sampling keys of one turn, and return the values to send to the engine.

    Raises:
        SamplingError: a key is unknown, or its value is not valid.
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


def turn_seed(seed: int, rollout_id: str, turn: int) -> int:
    """Return the seed of a turn. It depends only on the configured seed, the rollout and the turn."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{rollout_id}:{turn}".encode(), digest_size=4).digest(), "big")


def _plain_number(value: Any) -> Any:
    """Convert a number of numpy to a number of Python; environments often compute with numpy."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"a value of the type {type(value).__name__} cannot be written as JSON")
