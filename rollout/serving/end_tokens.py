"""Finds the tokens that end an answer of a model, as vLLM does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from renderers_adapter.tokenizer import FastTokenizer, TokenizerError
from rollout.serving.model_files import read_config


@dataclass(frozen=True, slots=True)
class EndTokens:
    """The tokens that end an answer.

    Attributes:
        main: the token that ends an answer without a stop reason; the tokenizer's eos token if it has one.
        others: further end tokens of the checkpoint. As in vLLM, they are stop tokens of each request.
    """

    main: int
    others: frozenset[int]

    def closing(self, prompt: Sequence[int]) -> int:
        """Return the token with which a script ends its answer: the first end token of the prompt, or else `main`.

        The first one closes the first message. The last one may open the answer: `<|assistant|>` ends answers of Phi-3.
        """
        return next((token_id for token_id in prompt if token_id == self.main or token_id in self.others), self.main)


def find_end_tokens(directory: Path, tokenizer: FastTokenizer) -> EndTokens:
    """Return the end tokens of the tokenizer and of generation_config.json; without that file, of config.json.

    Raises:
        TokenizerError: no file names an end token, or an end token is not in the vocabulary.
    """
    generation_config = directory / "generation_config.json"
    path = generation_config if generation_config.is_file() else directory / "config.json"
    ids = _read_eos_ids(path, tokenizer.vocab_size)
    main = tokenizer.eos_token_id
    if main is None:
        if not ids:
            raise TokenizerError(
                f"{directory} does not say which token ends an answer; set eos_token in tokenizer_config.json, or "
                "eos_token_id in generation_config.json."
            )
        main = ids[0]
    return EndTokens(main, frozenset(ids) - {main})


def _read_eos_ids(path: Path, vocab_size: int) -> list[int]:
    found = read_config(path).get("eos_token_id") if path.is_file() else None
    ids = found if isinstance(found, list) else [] if found is None else [found]
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            raise TokenizerError(
                f"eos_token_id in {path} has {token_id!r}; expected an id from 0 to {vocab_size - 1}. "
                "Correct it, or copy the file from the checkpoint again."
            )
    return ids
