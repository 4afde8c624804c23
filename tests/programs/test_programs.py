"""Random programs play a rollout: the records are exact, whatever an environment does with its conversations.

`make test` runs 1/20 of the programs, most of them short. ROLLOUT_TESTS=ci runs 3/8 of them, and full runs all, with up
to forty actions each. The last test breaks one invariant at a time, and checks that the programs detect it.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from renderers_adapter import tokens
from renderers_adapter.errors import AdapterError
from renderers_adapter.tokens import Placeholder, TokenRun
from rollout.engine.image_refs import ImageRef
from rollout.errors import RolloutError
from rollout.session import session, trace
from rollout.session.image_table import ImageTable
from tests.programs.programs import Programs, make_resources

LONGEST = 40
SHORT_PARTS = [(60, 4), (30, 12), (10, LONGEST)]
PARTS = {"full": [(250, LONGEST)] * 8, "ci": [(250, LONGEST)] * 3}.get(os.environ.get("ROLLOUT_TESTS", ""), SHORT_PARTS)
"""For each part: how many programs, and how many actions each of them may have."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> type[Programs]:
    class ProgramsWithResources(Programs):
        resources = make_resources(tmp_path_factory.mktemp("images"), tiny_model)

    return ProgramsWithResources


@pytest.mark.parametrize("part", range(len(PARTS)))
def test_the_records_are_exact_whatever_an_environment_does(programs: type[Programs], part: int) -> None:
    count, actions = PARTS[part]
    seeded = seed(part)(
        type("SeededPrograms", (programs,), {})
    )  # otherwise two parts of one size would be the same programs
    run_state_machine_as_test(seeded, settings=settings(max_examples=count, stateful_step_count=actions))


def keep_offset(mark: Placeholder, by: int) -> Placeholder:
    return mark


def drop_repeated_images(self: ImageTable, placeholders: Iterable[Placeholder]) -> tuple[ImageRef, ...]:
    return tuple({reference.hash: reference for reference in references(self, placeholders)}.values())


def always_equal(one: TokenRun, other: TokenRun) -> bool:
    return True


def any_tools(tools: Any) -> bytes:
    return b""


references = ImageTable.references


@pytest.mark.parametrize(
    ("where", "name", "mutant"),
    [
        (tokens, "shift_placeholder", keep_offset),
        (ImageTable, "references", drop_repeated_images),
        (trace, "same_tokens", always_equal),
        (session, "digest_tools", any_tools),
    ],
    ids=[
        "offsets are not rebased",
        "repeated images are lost",
        "a prefix is matched by message alone",
        "tools do not belong to a root",
    ],
)
def test_the_programs_detect_that(
    programs: type[Programs], monkeypatch: pytest.MonkeyPatch, where: Any, name: str, mutant: Any
) -> None:
    monkeypatch.setattr(where, name, mutant)
    found = settings(max_examples=60, stateful_step_count=LONGEST, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises((AssertionError, RolloutError, AdapterError)):
        run_state_machine_as_test(programs, settings=found)
