"""Finds out how the prompt of each turn was made, and which earlier text the chat template changed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from renderers_adapter.errors import AdapterError
from renderers_adapter.tokenizer import load_tokenizer
from rollout.config.model_directory import resolve_model_path
from rollout.config.source import read_document
from rollout.errors import ConfigurationError
from rollout.records.kinds import PromptSource, Step
from rollout.rundir.directory import RUN_CONFIG_NAME
from rollout.trainer import Trajectory, TrajectoryNode

_TOKENS_BEFORE, _TOKENS_AFTER = 24, 64
"""The number of tokens around the first changed one that are decoded."""
_CHARACTERS_BEFORE, _CHARACTERS_AFTER = 16, 40
"""The number of characters around the first changed one that are shown."""

Decode = Callable[[Sequence[int]], str]


class TokenizerNotFound(ConfigurationError):
    """The tokenizer of a run is not on this machine, so the text of its tokens is not known."""


@dataclass(frozen=True, slots=True)
class ChangedText:
    """The place where the chat template changed text that an earlier prompt had.

    Attributes:
        turn: the turn with the earlier prompt.
        before: the text at this place in the earlier prompt, shortened.
        now: the text at this place in the new prompt, shortened.
    """

    turn: int
    before: str
    now: str


def find_answers(trajectory: Trajectory) -> dict[int, TrajectoryNode]:
    """Return the answer of each turn, by the index of the turn in `Trajectory.steps`."""
    return {node.step: node for node in trajectory.nodes if node.sampled}


def has_changed_text(trajectory: Trajectory) -> bool:
    """Whether the chat template changed earlier text in a turn."""
    return any(step.prompt_source is PromptSource.EARLIER_TEXT for step in trajectory.steps)


def find_changed_texts(trajectory: Trajectory, decode: Decode) -> dict[int, ChangedText]:
    """Return the changed text of each turn whose prompt was rendered for this reason, by `Step.turn`.

    A turn is left out if the records do not contain the prompt that it would have continued.
    """
    answers = find_answers(trajectory)
    paths = {index: trajectory.path(answer.index) for index, answer in answers.items()}
    found = {}
    for index, step in enumerate(trajectory.steps):
        if step.prompt_source is PromptSource.EARLIER_TEXT and index in paths:
            earlier = _continued_turn(paths, index)
            if earlier is not None:
                texts = _first_difference(_prompt_ids(paths[earlier]), _prompt_ids(paths[index]), decode)
                found[step.turn] = ChangedText(trajectory.steps[earlier].turn, *texts)
    return found


def prompt_documents(trajectory: Trajectory, changed_texts: Mapping[int, ChangedText]) -> list[dict[str, Any]]:
    """Return for each turn how its prompt was made, and its changed text if it is given, as JSON-like data."""
    answers = find_answers(trajectory)
    return [
        {
            "turn": step.turn,
            "node": answers[index].index if index in answers else None,
            "source": step.prompt_source.value,
            **_change_document(step, changed_texts),
        }
        for index, step in enumerate(trajectory.steps)
    ]


def open_decoder(run_directory: Path, environment: str) -> Decode:
    """Return a function that decodes the tokens of an environment's model.

    Raises:
        TokenizerNotFound: the run's configuration or the tokenizer that it names is not on this machine.
    """
    files = [run_directory / name for name in (f"{environment}.yaml", RUN_CONFIG_NAME)]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise TokenizerNotFound(f"{run_directory} has no saved configuration")
    try:
        model = read_document(file, ()).data["model"]["path"]
        tokenizer = load_tokenizer(resolve_model_path(Path(model), run_directory))
    except (ConfigurationError, AdapterError) as error:
        raise TokenizerNotFound(str(error)) from None
    except (KeyError, TypeError):
        raise TokenizerNotFound(f"{file} has no model.path") from None
    return tokenizer.decode


def _continued_turn(paths: Mapping[int, Sequence[TrajectoryNode]], index: int) -> int | None:
    """Return the index of the turn whose messages and answer are the longest beginning of this turn's messages."""
    messages = [node.message for node in paths[index]]
    earlier = [other for other in paths if other < index and len(paths[other]) < len(messages)]
    for other in sorted(earlier, key=lambda other: (len(paths[other]), other), reverse=True):
        if all(node.message == message for node, message in zip(paths[other], messages, strict=False)):
            return other
    return None


def _prompt_ids(path: Sequence[TrajectoryNode]) -> list[int]:
    """Return the tokens of the prompt before the answer at the end of a path."""
    answer = path[-1].run
    runs = [node.run.ids for node in path[:-1]]
    return [int(token) for ids in (*runs, answer.ids[: answer.sampled_from]) for token in ids]


def _first_difference(before: Sequence[int], now: Sequence[int], decode: Decode) -> tuple[str, str]:
    """Return the text at the first difference of two prompts."""
    at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, now, strict=False)))
    start, end = max(0, at - _TOKENS_BEFORE), at + _TOKENS_AFTER
    texts = decode(before[start:end]), decode(now[start:end])
    first = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False)))
    first_shown = max(0, first - _CHARACTERS_BEFORE)
    is_begin = start == 0 and first_shown == 0
    return (
        _shorten(texts[0], first_shown, first, is_begin=is_begin, is_end=end >= len(before)),
        _shorten(texts[1], first_shown, first, is_begin=is_begin, is_end=end >= len(now)),
    )


def _shorten(text: str, first_shown: int, first_changed: int, *, is_begin: bool, is_end: bool) -> str:
    last = first_changed + _CHARACTERS_AFTER
    end = "" if is_end and last >= len(text) else "…"
    return f"{'' if is_begin else '…'}{text[first_shown:last]}{end}"


def _change_document(step: Step, changed_texts: Mapping[int, ChangedText]) -> dict[str, Any]:
    changed = changed_texts.get(step.turn)
    if changed is None:
        return {}
    return {"earlier_turn": changed.turn, "text_before": changed.before, "text_now": changed.now}
