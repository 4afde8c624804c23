"""Texts with characters that harm: halves of surrogate pairs, and what terminals obey."""

import orjson
import pytest

from rollout.texts import dump_json, escape_controls, escape_surrogates, is_well_formed
from rollout.worker.link import WorkerFailure, decode_report, encode_report


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("é 😀", "é 😀"), ("cut \ud83d", r"cut \ud83d"), (Text("plain"), "plain"), ("\udc00" * 2, r"\udc00\udc00")],
)
def test_half_of_a_surrogate_pair_is_escaped(text: str, escaped: str) -> None:
    assert escape_surrogates(text) == escaped
    assert type(escape_surrogates(text)) is str
    assert is_well_formed(text) == (text == escaped)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("é 😀\u3000ok", "é 😀\u3000ok"),
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[2J\x1b]0;title\x07\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b\x1bq\x07\x08", r"\x1b\x1bq\x07\x08"),
        ("line\r\n", "line\n"),
        ("50%\r100%", r"50%\r100%"),
        ("\u202etxt.exe", r"\u202etxt.exe"),
        ("\x9b31m", r"\x9b31m"),
        ("cut \ud83d", r"cut \ud83d"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text: str, escaped: str) -> None:
    assert escape_controls(text) == escaped


def test_json_is_written_for_any_text() -> None:
    value = {"a \ud83d": ["\ud83d", ("\udc00", 5, None)], "plain": 0.5}
    assert orjson.loads(dump_json(value)) == {r"a \ud83d": [r"\ud83d", [r"\udc00", 5, None]], "plain": 0.5}
    with pytest.raises(TypeError):
        dump_json({"not plain": object()})


def test_a_worker_reports_a_failure_with_any_text() -> None:
    assert decode_report(encode_report(WorkerFailure("cut \ud83d"))) == WorkerFailure(r"cut \ud83d")
