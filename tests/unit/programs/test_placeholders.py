"""Placeholders in the texts of a program's settings: what is filled, what stays, and what an error says."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.programs.placeholders import PlaceholderError, check_placeholders, fill_placeholders
from rollout.records.task import Task

TASK = Task("t-7", 3, 11, {"question": "Why?", "files": ["a.py", {"name": "b.py"}], "Level": 2, "note": {"text": "é"}})
VALUES = {"base_url": "http://127.0.0.1:1/v1", "model": "policy"}


def fill(text: str) -> str:
    return fill_placeholders(text, VALUES, TASK, "environment.prompt")


def refused(text: str) -> str:
    with pytest.raises(PlaceholderError) as error:
        fill(text)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{base_url}/x {model}", "http://127.0.0.1:1/v1/x policy"),
        ("{task.id} {task.index} {task.seed}", "t-7 3 11"),
        ("{task.question}", "Why?"),
        ("{task.files.0} {task.files.1.name}", "a.py b.py"),
        ("{task.files.1}", '{"name":"b.py"}'),
        ("{task.Level}", "2"),
        ("{task.note}", '{"text":"é"}'),
        ('{"a": {model}}', '{"a": policy}'),
    ],
)
def test_placeholders_are_filled(text: str, filled: str) -> None:
    assert fill(text) == filled


@pytest.mark.parametrize(
    "text",
    ['{"a": 1}', "{}", "${HOME}", "${model}", "awk '{print $1}'", "{a,b}", "{1..3}", "{ model }", "{MODEL}", "{task.}"],
)
def test_other_braces_stay_as_they_are(text: str) -> None:
    assert fill(text) == text
    assert check_placeholders(text, frozenset()) == text


def test_doubled_braces_are_the_text_of_a_placeholder() -> None:
    assert fill("{{model}} {{task.nothing}} ${{model}}") == "{model} {task.nothing} ${model}"
    assert check_placeholders("{{unknown}}", frozenset()) == "{{unknown}}"


def test_an_unknown_name_is_refused_with_the_closest_name_and_all_names_in_order() -> None:
    expected = "there is no {base_ulr} (did you mean 'base_url'?); the placeholders are {base_url}, {home}, {model}, "
    with pytest.raises(ValueError, match=re.escape(expected)):
        check_placeholders("{base_ulr}", frozenset(("model", "base_url", "home")))
    assert "environment.prompt: there is no {home}; the placeholders are {base_url}, {model}, " in refused("{home}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "{task.qestion}",
            "the task has no 'qestion', which environment.prompt uses (did you mean 'question'?); it has Level, files, "
            "id, index, note, question, seed. ",
        ),
        ("{task.files.2}", "{task.files} has no '2', which environment.prompt uses; it has 0, 1. "),
        ("{task.question.text}", "{task.question} has no 'text', which environment.prompt uses; it has no parts. "),
        ("{task.id.x}", "{task.id} has no 'x', which environment.prompt uses; it has no parts. "),
    ],
)
def test_what_the_task_lacks_is_named_with_the_key_that_uses_it(text: str, problem: str) -> None:
    assert problem in refused(text)


def test_the_names_of_the_task_are_checked_only_when_they_are_filled() -> None:
    assert check_placeholders("{task.nothing}", frozenset()) == "{task.nothing}"


def test_an_error_about_large_data_is_short() -> None:
    task = Task("0", 0, 0, {f"name{number}": "" for number in range(10_000)})
    with pytest.raises(PlaceholderError) as error:
        fill_placeholders("{task.x}", {}, task, "environment.prompt")
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(("value", "problem"), [("a\0b", "NUL"), ("\ud800", "half of a character"), ({1, 2}, "plain")])
def test_a_value_that_no_argument_can_have_is_refused(value: object, problem: str) -> None:
    with pytest.raises(PlaceholderError, match=problem):
        fill_placeholders("{task.x}", {}, Task("0", 0, 0, {"x": value}), "environment.prompt")


NAMES = st.from_regex(r"[a-z_][a-z0-9_]*", fullmatch=True)


@given(st.text().filter(lambda text: "{" not in text))
def test_a_text_without_an_opening_brace_never_changes(text: str) -> None:
    assert fill(text) == text


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0")))
def test_a_value_is_never_filled_again(value: str) -> None:
    task = Task("0", 0, 0, {"x": value})
    assert fill_placeholders("<{task.x}>", {"model": "no"}, task, "environment.prompt") == f"<{value}>"


@given(st.dictionaries(st.text(), st.integers() | st.text(alphabet="abc{}$") | st.none(), min_size=1))
def test_json_of_an_object_is_never_a_placeholder_itself(value: dict[str, object]) -> None:
    text = json.dumps({"key": value}, ensure_ascii=False)
    try:
        filled = fill(text)
    except PlaceholderError:
        assert re.search(r"\{[a-z_][^{} ]*\}", text)
    else:
        assert filled == text or re.search(r"\{[a-z_][^{} ]*\}", text)


@given(NAMES, st.text(alphabet="{}$ ab"), st.text(alphabet="}$ ab"))
def test_a_doubled_name_is_always_its_text(name: str, before: str, after: str) -> None:
    before = before.replace("{", "")
    assert fill(f"{before}{{{{{name}}}}}{after}") == f"{before}{{{name}}}{after}"
