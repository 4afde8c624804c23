"""Versions: the number of a name, and which weights satisfy a requirement."""

import pytest

from rollout.records.versions import loading_version, version_number, version_satisfies


@pytest.mark.parametrize(
    ("name", "number"), [("7", 7), ("step-12", 12), ("weights/v0003", 3), ("main", None), (loading_version("8"), None)]
)
def test_a_version_is_the_number_its_name_ends_with(name: str, number: int | None) -> None:
    assert version_number(name) == number


@pytest.mark.parametrize("name", ["9" * 5000, "9" * 100_000 + "x", "7²"])
def test_a_long_or_unusual_name_has_no_number(name: str) -> None:
    assert version_number(name) is None


@pytest.mark.parametrize(
    ("found", "required", "satisfies"),
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
def test_the_same_or_newer_weights_satisfy_a_requirement(found: str | None, required: str, satisfies: bool) -> None:
    assert version_satisfies(found, required) is satisfies
