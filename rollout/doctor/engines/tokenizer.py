"""Checks that the engine has the same tokenizer as we have: the same ids for texts, and the same texts for ids."""

from functools import partial

import anyio.to_thread

from rollout.doctor.engines.own_engine import is_own_engine
from rollout.doctor.engines.tokenizer_difference import (
    comparable_lines,
    describe_other_ids,
    describe_other_text,
    separated,
)
from rollout.doctor.engines.tokenizer_probes import TokenizerProbes, make_probes, unused_ids
from rollout.doctor.engines.tokenizer_requests import batches_of_texts, fetch_text, find_ids_fetcher
from rollout.doctor.engines.under_test import CheckFailed, EngineUnderTest, NothingToCheck
from rollout.engine.errors import EngineBroken, EngineNotFound, EngineRefused, EngineTimeout

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
    return f"{_compared_ids(probes)}; {await _compare_texts_of_ids(engine, probes)}"


def tokens_fix(engine: EngineUnderTest, error: Exception) -> str | None:
    """Return what corrects an error of `check_tokens` other than a difference."""
    return "repeat the check when the engine has less work" if isinstance(error, EngineTimeout) else None


def _compared_ids(probes: TokenizerProbes) -> str:
    seen_added = probes.added_count - len(probes.missing_added_ids)
    seen_vocabulary = probes.vocabulary_count - len(probes.missing_vocabulary_ids)
    return (
        f"the same ids for texts with {seen_added} of {probes.added_count} added tokens, {seen_vocabulary:,} of "
        f"{probes.vocabulary_count:,} other tokens and {probes.character_count:,} characters"
    )


async def _compare_texts_of_ids(engine: EngineUnderTest, probes: TokenizerProbes) -> str:
    """Compare the texts of our tokens that occur in no probe, and of ids that we do not use; return the finding."""
    other_ids = (*probes.missing_added_ids, *probes.missing_vocabulary_ids)
    others = f"the {len(other_ids):,} others (parts of characters, and what no probe made)"
    try:
        await _compare_texts(engine, other_ids)
    except EngineNotFound:
        return f"{others} were not compared, because this server has no /detokenize"
    free_ids = unused_ids(engine.adapter.tokenizer, _IDS_AFTER_THE_LAST)
    try:
        await _compare_texts(engine, free_ids)
    except (EngineRefused, EngineBroken):  # some tokenizers fail for an id that they do not have
        return f"{others} have the same texts; whether the engine has additional tokens was not seen"
    return f"{others} have the same texts, and {len(free_ids):,} ids that we do not use have none there"


async def _compare_texts(engine: EngineUnderTest, token_ids: tuple[int, ...]) -> None:
    tokenizer = engine.adapter.tokenizer
    server_text = await fetch_text(engine, separated(tokenizer, token_ids))
    own_text = tokenizer.decode(separated(tokenizer, token_ids))
    if comparable_lines(server_text) != comparable_lines(own_text):
        difference = await anyio.to_thread.run_sync(describe_other_text, tokenizer, token_ids, server_text)
        raise CheckFailed(f"the engine has another tokenizer: {difference}", _OTHER_CHECKPOINT_FIX)
