"""Versions: which number a name tells, and which weights will do."""

import pytest

from rollout.records.versions import loading_version, version_number, version_satisfies


@pytest.mark.parametrize(
    ("name", "number"), [("7", 7), ("step-12", 12), ("weights/v0003", 3), ("main", None), (loading_version("8"), None)]
)
def test_a_version_is_the_number_its_name_ends_with(name: str, number: int | None) -> None:
    assert version_number(name) == number


@pytest.mark.parametrize("name", ["9" * 5000, "9" * 100_000 + "x", "7²"])
def test_a_name_of_any_length_and_alphabet_is_read(name: str) -> None:
    assert version_number(name) is None


@pytest.mark.parametrize(
    ("found", "required", "will_do"),
    [
        ("7", "7", True),
        ("8", "7", True),
        ("10", "9", True),
        ("6", "7", False),
        ("step-8", "step-7", True),
        ("main", "main", True),
        ("main", "7", False),
        ("9", "main", False),
        ("default", "0", False),
        (loading_version("8"), "7", False),
        (None, "0", False),
    ],
)
def test_the_same_weights_will_do_and_newer_ones(found: str | None, required: str, will_do: bool) -> None:
    assert version_satisfies(found, required) is will_do
