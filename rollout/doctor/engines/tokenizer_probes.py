"""Makes texts that show whether another tokenizer equals ours, from our own vocabulary.

    probes = make_probes(adapter.tokenizer, bytes_of_a_text=1 << 19)
    probes.ids_of_texts              # the ids that the other tokenizer must give for each text

The texts contain every added token in several surroundings, the whole vocabulary, overlapping tokens, every character,
and samples of writing. The texts of the vocabulary stand in a random order without separators. Where two tokens meet or
overlap, merges compete, so that the order of the merges matters.
"""

import random
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from tokenizers import AddedToken

from renderers_adapter.tokenizer import FastTokenizer
from rollout.doctor.engines.writing_samples import CONTROL_TOKENS_OF_MODELS, WRITING_SAMPLES

_SWEPT_CHARACTERS = (range(ord(" "), 0x40000), range(0xE0000, 0xF0000))
"""The Unicode planes 0 to 3 and 14. The others have no assigned characters, or only private ones."""
_LAST_CHARACTER = "\U0010ffff"
_LARGEST_CHARACTER = 4
"""The number of bytes of the largest characters in UTF-8."""
_BYTES_OF_OVERLAPPING_TEXTS = 1 << 19
_OVERLAPS_OF_A_TOKEN = 4
_LONGEST_OVERLAP = 3
_CHARACTERS_WITHOUT_MEANING = ("Cn", "Co", "Cs")
"""The Unicode categories of characters that are not assigned, private, or halves of others."""
UNKNOWN_CHARACTER = "\N{REPLACEMENT CHARACTER}"
"""The text of a token that is only a part of a character."""
_COMBINING_CHARACTER = "\N{COMBINING LONG SOLIDUS OVERLAY}"
_FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}


@dataclass(frozen=True, slots=True)
class TokenizerProbes:
    """The probes for one tokenizer.

    Attributes:
        ids_of_texts: for each text the ids that our tokenizer gives, without additional special tokens.
        added_count: the number of added tokens.
        vocabulary_count: the number of the other tokens.
        missing_added_ids: the added tokens that occur in no text.
        missing_vocabulary_ids: the other tokens that occur in no text.
        character_count: the number of different characters in the texts.
    """

    ids_of_texts: Mapping[str, list[int]]
    added_count: int
    vocabulary_count: int
    missing_added_ids: tuple[int, ...]
    missing_vocabulary_ids: tuple[int, ...]
    character_count: int


def make_probes(tokenizer: FastTokenizer, *, bytes_of_a_text: int) -> TokenizerProbes:
    """Return the probes for a tokenizer. This takes a few seconds of computing, so call it in a thread.

    Args:
        tokenizer: our tokenizer.
        bytes_of_a_text: the largest size of a text, in UTF-8.
    """
    added_tokens = tokenizer.backend.get_added_tokens_decoder()
    vocabulary_ids = set(tokenizer.backend.get_vocab(with_added_tokens=True).values()) - added_tokens.keys()
    vocabulary_texts = _vocabulary_texts(tokenizer, vocabulary_ids)
    other_control_tokens = (f"x{control_token}y" for control_token in CONTROL_TOKENS_OF_MODELS)
    lines = (*_added_token_lines(added_tokens), *other_control_tokens, *WRITING_SAMPLES)
    mixed = random.Random(0)  # noqa: S311 - no secret: the order only has to be mixed
    shuffled_texts = list(vocabulary_texts.values())
    mixed.shuffle(shuffled_texts)
    overlapping_texts = _overlapping_texts(shuffled_texts, mixed)
    characters = _swept_characters()
    spaced_characters = (f"{character} " for character in characters)
    pieces = (f"{line}\n" for line in lines), shuffled_texts, overlapping_texts, characters, spaced_characters
    ids_of_texts = _encode_pieces(tokenizer, chain.from_iterable(pieces), bytes_of_a_text)
    seen_ids = set().union(*ids_of_texts.values())
    separator = _separating_token(added_tokens)
    missing_texts = [text + separator for token_id, text in vocabulary_texts.items() if token_id not in seen_ids]
    ids_of_texts |= _encode_pieces(tokenizer, missing_texts, bytes_of_a_text)
    seen_ids = seen_ids.union(*ids_of_texts.values())
    return TokenizerProbes(
        ids_of_texts=ids_of_texts,
        added_count=len(added_tokens),
        vocabulary_count=len(vocabulary_ids),
        missing_added_ids=tuple(sorted(added_tokens.keys() - seen_ids)),
        missing_vocabulary_ids=tuple(sorted(vocabulary_ids - seen_ids)),
        character_count=len(set().union(*ids_of_texts)),
    )


def unused_ids(tokenizer: FastTokenizer, after_the_last: int) -> tuple[int, ...]:
    """Return the ids between 0 and our last id that no token has, and as many after the last one as given."""
    used_ids = set(tokenizer.backend.get_vocab(with_added_tokens=True).values())
    return tuple(token_id for token_id in range(max(used_ids) + 1 + after_the_last) if token_id not in used_ids)


def _vocabulary_texts(tokenizer: FastTokenizer, token_ids: Iterable[int]) -> dict[int, str]:
    """Return the text of each token that is not only a part of a character.

    Each token is decoded after an `a`, because decoders remove a space at the beginning of a text.
    """
    first_ids = tokenizer.encode("a")
    first_text = tokenizer.decode(first_ids)
    texts = {}
    for token_id in sorted(token_ids):
        text = tokenizer.decode([*first_ids, token_id])
        if text.startswith(first_text) and UNKNOWN_CHARACTER not in text:
            texts[token_id] = text[len(first_text) :]
    return texts


def _overlapping_texts(texts: Sequence[str], mixed: random.Random) -> Iterator[str]:
    """Yield texts of two tokens that overlap, such as `pata` for `pat` and `ata`, up to a total size.

    Args:
        texts: the texts of the tokens.
        mixed: chooses the overlaps.
    """
    sorted_texts = sorted(texts)
    size = 0
    for text in chain.from_iterable([texts] * _OVERLAPS_OF_A_TOKEN):
        overlap = text[-mixed.randint(1, _LONGEST_OVERLAP) :]
        begin, end = bisect_left(sorted_texts, overlap), bisect_left(sorted_texts, overlap + _LAST_CHARACTER)
        next_text = sorted_texts[mixed.randrange(begin, end)] if begin < end else ""
        if len(overlap) < min(len(text), len(next_text)):
            overlapping_text = text + next_text[len(overlap) :]
            size += len(overlapping_text.encode())
            if size > _BYTES_OF_OVERLAPPING_TEXTS:
                return
            yield overlapping_text


def _added_token_lines(added_tokens: Mapping[int, AddedToken]) -> Iterator[str]:
    """Yield a line for each added token.

    In a word, between double spaces, before a combining character, and in other letters, the settings of an added
    token (`single_word`, `lstrip`, `rstrip`, `normalized`) make a difference.
    """
    for token_id in sorted(added_tokens):
        content = added_tokens[token_id].content
        variants = {content.upper(), content.lower(), content.translate(_FULL_WIDTH)} - {content}
        yield f"x{content}y  {content}  z{content}{_COMBINING_CHARACTER}{''.join(sorted(variants))}"


def _swept_characters() -> list[str]:
    """Return the assigned characters, except the private ones and the first control characters."""
    characters = map(chr, chain.from_iterable(_SWEPT_CHARACTERS))
    return [one for one in characters if unicodedata.category(one) not in _CHARACTERS_WITHOUT_MEANING]


def _separating_token(added_tokens: Mapping[int, AddedToken]) -> str:
    """Return the shortest added token that leaves the text around it as it is; a line break if there is none."""
    contents = (
        token.content
        for token in added_tokens.values()
        if not (token.lstrip or token.rstrip or token.single_word or token.content.isspace())
    )
    return min(contents, key=len, default="\n")


def _encode_pieces(tokenizer: FastTokenizer, pieces: Iterable[str], limit: int) -> dict[str, list[int]]:
    texts = list(_joined(pieces, limit))
    encodings = tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)
    return {text: encoding.ids for text, encoding in zip(texts, encodings, strict=True)}


def _joined(pieces: Iterable[str], limit: int) -> Iterator[str]:
    """Join the pieces to texts of at most `limit` bytes."""
    text: list[str] = []
    size = 0
    characters_of_a_piece = limit // _LARGEST_CHARACTER
    short_pieces = (
        piece[begin : begin + characters_of_a_piece]
        for piece in pieces
        for begin in range(0, len(piece), characters_of_a_piece)
    )
    for piece in short_pieces:
        piece_size = len(piece.encode())
        if text and size + piece_size > limit:
            yield "".join(text)
            text, size = [], 0
        text.append(piece)
        size += piece_size
    if text:
        yield "".join(text)
