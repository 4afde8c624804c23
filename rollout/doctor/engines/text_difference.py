"""Shows the first difference between two prompts as text."""

from collections.abc import Sequence
from difflib import SequenceMatcher

from renderers_adapter.tokenizer import FastTokenizer

_SHOWN_CHARACTERS = 60
_WINDOW = 96
"""The number of tokens in which the end of a difference is searched."""
_REPLACEMENT = "\ufffd"


def describe_difference(
    own_ids: Sequence[int], server_ids: Sequence[int], tokenizer: FastTokenizer, pad_id: int | None
) -> str:
    """Return lines with the text before the first difference, and what follows on each side.

    The differing part of each side is between « and ». Many pad tokens of an image are shown as one with a number.
    """
    at = _first_difference(own_ids, server_ids)
    while at and _REPLACEMENT in tokenizer.decode([*own_ids[at - 1 : at]]):  # a part of a character
        at -= 1
    own_rest, server_rest = own_ids[at : at + _WINDOW], server_ids[at : at + _WINDOW]
    own_length, server_length = _difference_lengths(own_rest, server_rest)
    before = _show(own_ids[max(0, at - _WINDOW) : at], tokenizer, pad_id)

    def side(ids: Sequence[int], length: int) -> str:
        differing = _cut_middle(_show(ids[:length], tokenizer, pad_id))
        return f"«{differing}»{_cut_end(_show(ids[length:], tokenizer, pad_id))}"

    return (
        f"after:   {_cut_start(before) or '(the beginning)'}\n"
        f"ours:    {side(own_rest, own_length)}\n"
        f"server:  {side(server_rest, server_length)}"
    )


def _first_difference(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))


def _difference_lengths(own_rest: Sequence[int], server_rest: Sequence[int]) -> tuple[int, int]:
    """Return how many tokens of each side differ before both sides are equal again."""
    matcher = SequenceMatcher(None, own_rest, server_rest, autojunk=False)
    for block in matcher.get_matching_blocks():
        if block.size >= 2 or block.a + block.size == len(own_rest):
            return block.a, block.b
    return len(own_rest), len(server_rest)


def _show(ids: Sequence[int], tokenizer: FastTokenizer, pad_id: int | None) -> str:
    """Return the text of tokens, with control characters as escapes."""
    parts: list[str] = []
    begin = 0
    while begin < len(ids):
        is_pad, end = ids[begin] == pad_id, begin
        while end < len(ids) and (ids[end] == pad_id) == is_pad:
            end += 1
        count = end - begin
        parts.append(
            f"{tokenizer.decode([ids[begin]])}{f'×{count}' if count > 1 else ''}"
            if is_pad
            else tokenizer.decode([*ids[begin:end]])
        )
        begin = end
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in "".join(parts)
    )


def _cut_start(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else "…" + text[-_SHOWN_CHARACTERS:]


def _cut_end(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _cut_middle(text: str) -> str:
    if len(text) <= 2 * _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]} … {text[-_SHOWN_CHARACTERS:]}"
