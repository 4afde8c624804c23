"""Describes where two tokenizers give different ids for a text, or different texts for ids."""

from bisect import bisect_right
from collections.abc import Sequence

from renderers_adapter.tokenizer import FastTokenizer

_SHOWN_IDS = 6
_SHOWN_CHARACTERS = 40
_CHARACTERS_AROUND = 15
_SEARCHED_IDS = 64
_EQUAL_IDS_AFTER = 2
"""A difference ends where as many ids are equal again."""


def describe_other_ids(tokenizer: FastTokenizer, text: str, own_ids: Sequence[int], server_ids: Sequence[int]) -> str:
    """Return the first difference of the ids of a text, as `TEXT (in SURROUNDINGS) is IDS here, and IDS there`."""
    begin = _first_difference(own_ids, server_ids)
    own_length, server_length = _lengths_of_difference(own_ids[begin:], server_ids[begin:])
    own_part, server_part = own_ids[begin : begin + own_length], server_ids[begin : begin + server_length]
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    if own_part:
        first, last = offsets[begin][0], max(end for _, end in offsets[begin : begin + own_length])
    else:
        first = last = offsets[begin][0] if begin < len(offsets) else len(text)
    surroundings = text[max(0, first - _CHARACTERS_AROUND) : min(last, first + _SHOWN_CHARACTERS) + _CHARACTERS_AROUND]
    return (
        f"{_shortened(text[first:last])} (in {surroundings!r}) is {_described(tokenizer, own_part)} in our tokenizer, "
        f"and {_described(tokenizer, server_part)} in the engine's"
    )


def separated(tokenizer: FastTokenizer, token_ids: Sequence[int]) -> list[int]:
    """Return the ids, with the ids of a line break after each."""
    line_break_ids = tokenizer.encode("\n")
    return [separated_id for token_id in token_ids for separated_id in (token_id, *line_break_ids)]


def comparable_lines(text: str) -> list[str]:
    """Return the lines of a text without white space, because servers may remove spaces before punctuation."""
    return ["".join(line.split()) for line in text.split("\n")]


def describe_other_text(tokenizer: FastTokenizer, token_ids: Sequence[int], server_text: str) -> str:
    """Return the first of the ids whose text is another one in the engine's text of the separated ids."""
    server_lines = comparable_lines(server_text)
    own_lines = comparable_lines(tokenizer.decode(separated(tokenizer, token_ids)))
    line = _first_difference(own_lines, server_lines)

    def lines_before(token_count: int) -> int:
        return tokenizer.decode(separated(tokenizer, token_ids[:token_count])).count("\n")

    token_count = bisect_right(range(len(token_ids)), line, key=lines_before)
    other_id = token_ids[min(token_count, len(token_ids)) - 1]
    return (
        f"the text of {_described_id(tokenizer, other_id)} is "
        f"{_shortened(server_lines[line] if line < len(server_lines) else '')} in the engine's"
    )


def _first_difference(own: Sequence[object], other: Sequence[object]) -> int:
    pairs = enumerate(zip(own, other, strict=False))
    return next((at for at, (ours, others) in pairs if ours != others), min(len(own), len(other)))


def _lengths_of_difference(own_ids: Sequence[int], server_ids: Sequence[int]) -> tuple[int, int]:
    """Return how many ids of both differ, from their beginning, before they are equal again."""
    own_ids, server_ids = own_ids[:_SEARCHED_IDS], server_ids[:_SEARCHED_IDS]
    for length in range(1, len(own_ids) + len(server_ids)):
        for own_length in range(max(0, length - len(server_ids)), min(length, len(own_ids)) + 1):
            server_length = length - own_length
            own_after = own_ids[own_length : own_length + _EQUAL_IDS_AFTER]
            if own_after == server_ids[server_length : server_length + _EQUAL_IDS_AFTER]:
                return own_length, server_length
    return len(own_ids), len(server_ids)


def _described(tokenizer: FastTokenizer, ids: Sequence[int]) -> str:
    if not ids:
        return "nothing"
    shown = ", ".join(_described_id(tokenizer, token_id) for token_id in ids[:_SHOWN_IDS])
    return f"{shown} and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else shown


def _described_id(tokenizer: FastTokenizer, token_id: int) -> str:
    if tokenizer.backend.id_to_token(token_id) is None:
        return f"{token_id} (no token of ours)"
    return f"{token_id} ({tokenizer.decode(token_id)!r} in ours)"


def _shortened(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")
