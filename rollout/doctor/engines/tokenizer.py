"""Checks that the engine has the same tokenizer as we have: the same ids for texts, and the same texts for ids."""

import shlex
from collections.abc import Sequence
from functools import partial

import anyio.to_thread
import orjson

from rollout.doctor.engines.own_engine import is_own_engine
from rollout.doctor.engines.tokenizer_difference import (
    comparable_lines,
    describe_other_ids,
    describe_other_text,
    separated,
)
from rollout.doctor.engines.tokenizer_probes import UNKNOWN_CHARACTER, TokenizerProbes, make_probes, unused_ids
from rollout.doctor.engines.tokenizer_requests import batches_of_texts, fetch_text, find_ids_fetcher
from rollout.doctor.engines.under_test import CheckFailed, CheckPartlyMade, EngineUnderTest, NothingToCheck
from rollout.engine.errors import EngineBroken, EngineMismatch, EngineNotFound, EngineRefused, EngineTimeout
from transports.redaction import hide_passwords

_IDS_AFTER_THE_LAST = 1024
"""Additional tokens of the engine are searched among as many ids after our last one."""
_OTHER_CHECKPOINT_FIX = (
    "set model.path to the directory of the checkpoint that the engine serves, with the same tokenizer.json and "
    "tokenizer_config.json"
)


async def check_tokens(engine: EngineUnderTest) -> str:
    """Check that both tokenizers give the same ids for the probe texts, and the same texts for the other ids.

    Returns:
        The finding: how many tokens were compared.

    Raises:
        CheckFailed: a difference was found. The message names the text or the token, and what both tokenizers give.
        CheckPartlyMade: the ids are the same, but the engine does not give the texts of the other ids.
    """
    if await is_own_engine(engine):
        raise NothingToCheck("this engine takes tokens only, so it has no tokenizer to compare")
    fetch_ids, bytes_of_a_text = await find_ids_fetcher(engine)
    tokenizer = engine.adapter.tokenizer
    probes = await anyio.to_thread.run_sync(partial(make_probes, tokenizer, bytes_of_a_text=bytes_of_a_text))
    for texts in batches_of_texts(tuple(probes.ids_of_texts)):
        for text, server_ids in zip(texts, await fetch_ids(engine, texts), strict=True):
            own_ids = probes.ids_of_texts[text]
            if server_ids != own_ids:
                difference = await anyio.to_thread.run_sync(describe_other_ids, tokenizer, text, own_ids, server_ids)
                raise CheckFailed(f"the engine has another tokenizer: {difference}", _OTHER_CHECKPOINT_FIX)
    return await _compare_texts_of_ids(engine, probes)


def tokens_fix(engine: EngineUnderTest, error: Exception) -> str | None:
    """Return what corrects an error of `check_tokens` other than a difference."""
    match error:
        case EngineTimeout():
            return "repeat the check when the engine has less work"
        case EngineMismatch():
            return (
                "name a vLLM server in engine.urls, without a proxy that changes its answers. To see an answer: "
                + _curl_command(engine)
            )
    return None


def _curl_command(engine: EngineUnderTest) -> str:
    key_variable = engine.config.engine.api_key_env
    key = "" if key_variable is None else f' -H "Authorization: Bearer ${key_variable}"'
    body = orjson.dumps({"model": engine.model, "prompt": "a"}).decode()
    url = shlex.quote(f"{hide_passwords(engine.url)}/tokenize")
    return f"curl {url} -H 'Content-Type: application/json'{key} -d {shlex.quote(body)}"


def _compared_ids(probes: TokenizerProbes) -> str:
    seen_added = probes.added_count - len(probes.missing_added_ids)
    seen_vocabulary = probes.vocabulary_count - len(probes.missing_vocabulary_ids)
    return (
        f"the same ids for texts with {seen_added} of {probes.added_count} added tokens, {seen_vocabulary:,} of "
        f"{probes.vocabulary_count:,} other tokens and {probes.character_count:,} characters"
    )


async def _compare_texts_of_ids(engine: EngineUnderTest, probes: TokenizerProbes) -> str:
    """Compare the texts of our tokens that occur in no probe, and of ids that we do not use; return the finding.

    Raises:
        CheckPartlyMade: the engine does not give these texts.
    """
    same_ids = _compared_ids(probes)
    other_ids = (*probes.missing_added_ids, *probes.missing_vocabulary_ids)
    free_ids = unused_ids(engine.adapter.tokenizer, _IDS_AFTER_THE_LAST)
    try:
        await _compare_texts(engine, (*other_ids, *free_ids))
    except EngineNotFound:
        raise CheckPartlyMade(
            f"{same_ids}. {len(other_ids):,} other tokens and {len(free_ids):,} ids that we do not use were not "
            "compared, because this server has no /detokenize; let the proxy pass it"
        ) from None
    except (EngineRefused, EngineBroken):  # some tokenizers fail for an id that they do not have
        await _compare_texts(engine, other_ids)
        raise CheckPartlyMade(
            f"{same_ids}{_compared_texts(engine, other_ids)}. Whether the engine has additional tokens was not seen, "
            "because its /detokenize fails for ids that we do not use"
        ) from None
    return (
        f"{same_ids}{_compared_texts(engine, other_ids)}; {len(free_ids):,} ids that we do not use have no text there"
    )


def _compared_texts(engine: EngineUnderTest, token_ids: Sequence[int]) -> str:
    """Return what comparing the texts of tokens proved; an empty text if there are no tokens."""
    texts = [engine.adapter.tokenizer.decode([token_id]) for token_id in token_ids]
    part_count = sum(not text.replace(UNKNOWN_CHARACTER, "").strip() for text in texts)
    whole_count = len(texts) - part_count
    same = f"; {whole_count:,} others have the same texts" if whole_count else ""
    parts = f"; {part_count:,} parts of characters cannot be compared by their text" if part_count else ""
    return same + parts


async def _compare_texts(engine: EngineUnderTest, token_ids: tuple[int, ...]) -> None:
    tokenizer = engine.adapter.tokenizer
    server_text = await fetch_text(engine, separated(tokenizer, token_ids))
    own_text = tokenizer.decode(separated(tokenizer, token_ids))
    if comparable_lines(server_text) != comparable_lines(own_text):
        difference = await anyio.to_thread.run_sync(describe_other_text, tokenizer, token_ids, server_text)
        raise CheckFailed(f"the engine has another tokenizer: {difference}", _OTHER_CHECKPOINT_FIX)
