"""Random programs against a rollout: whatever an environment does with its conversations, the records are exact.

`make test` runs a twentieth of the programs, most of them short. ROLLOUT_TESTS=ci runs three eighths of them, and full
all, of up to forty actions each. The last tests break the one thing that each invariant hangs on, and want the programs
to notice.
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
from tests.programs.programs import Programs, make_world

LONGEST = 40
A_TWENTIETH = [(60, 4), (30, 12), (10, LONGEST)]
SHARES = {"full": [(250, LONGEST)] * 8, "ci": [(250, LONGEST)] * 3}.get(
    os.environ.get("ROLLOUT_TESTS", ""), A_TWENTIETH
)
"""How many programs, and how many actions each of them may have."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> type[Programs]:
    class InThisWorld(Programs):
        world = make_world(tmp_path_factory.mktemp("images"), tiny_model)

    return InThisWorld


@pytest.mark.parametrize("part", range(len(SHARES)))
def test_whatever_an_environment_does_the_records_are_exact(programs: type[Programs], part: int) -> None:
    count, actions = SHARES[part]
    seeded = seed(part)(type("OfThisPart", (programs,), {}))  # else two parts of one size were the same programs
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
        "multiplicity is lost",
        "a prefix is matched by message alone",
        "tools do not belong to a root",
    ],
)
def test_the_programs_notice_when(
    programs: type[Programs], monkeypatch: pytest.MonkeyPatch, where: Any, name: str, mutant: Any
) -> None:
    monkeypatch.setattr(where, name, mutant)
    found = settings(max_examples=60, stateful_step_count=LONGEST, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises((AssertionError, RolloutError, AdapterError)):
        run_state_machine_as_test(programs, settings=found)
