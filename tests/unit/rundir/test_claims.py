"""Claims: no two attempts share a number, and what is done stays done."""

import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.rundir.claims import AttemptHistory, Claims, ClaimsError, Outcome


def outcome(rollout: str, attempt: int, reward: float = 1.0) -> Outcome:
    return Outcome(rollout=rollout, group="g", attempt=attempt, status="ok", reward=reward)


def test_attempts_are_numbered_in_turn(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    numbers = [claims.claim_next_attempt("r").attempt_number for _ in range(3)]
    assert numbers == [1, 2, 3]
    assert claims.attempt_history("r") == AttemptHistory(attempts_used=3, unreported_attempts=3)
    assert claims.attempt_history("another") == AttemptHistory(0, 0)


def test_an_attempt_that_was_handed_back_keeps_its_number_and_is_not_counted(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    first = claims.claim_next_attempt("r")
    claims.mark_returned(first)
    claims.mark_returned(first)
    second = claims.claim_next_attempt("r")
    assert (second.attempt_number, second.attempts_used) == (2, 1)


def test_an_attempt_that_the_infrastructure_failed_counts_and_is_not_taken_for_the_death_of_a_worker(
    tmp_path: Path,
) -> None:
    claims = Claims(tmp_path)
    claims.mark_failed(claims.claim_next_attempt("r"))
    claims.claim_next_attempt("r")
    claims.mark_returned(claims.claim_next_attempt("r"))
    assert claims.attempt_history("r") == AttemptHistory(attempts_used=2, unreported_attempts=1)


def test_claims_made_together_never_share_a_number(tmp_path: Path) -> None:
    numbers: Counter[int] = Counter()
    lock = threading.Lock()

    def claim() -> None:
        claims = Claims(tmp_path)
        for _ in range(20):
            number = claims.claim_next_attempt("r").attempt_number
            with lock:
                numbers[number] += 1

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers == Counter(range(1, 81))


def test_the_first_outcome_stays(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    first, second = claims.claim_next_attempt("r"), claims.claim_next_attempt("r")
    assert not claims.is_done("r")
    assert claims.outcome("r") is None
    claims.record_outcome(outcome("r", second.attempt_number, reward=0.5))
    claims.record_outcome(outcome("r", first.attempt_number, reward=1.0))
    assert claims.is_done("r")
    assert claims.outcome("r") == outcome("r", second.attempt_number, reward=0.5)
    assert list(claims.outcomes()) == [outcome("r", second.attempt_number, reward=0.5)]


@given(names=st.sets(st.text(min_size=1, max_size=300), min_size=2, max_size=6))
def test_any_name_of_a_rollout_can_be_claimed_and_none_is_taken_for_another(
    tmp_path_factory: pytest.TempPathFactory, names: set[str]
) -> None:
    claims = Claims(tmp_path_factory.mktemp("claims"))
    for name in names:
        assert claims.claim_next_attempt(name).attempt_number == 1


def test_a_directory_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClaimsError, match="cannot be made"):
        Claims(tmp_path / "file" / "claims")
    claims = Claims(tmp_path / "claims")
    (tmp_path / "claims").rmdir()
    with pytest.raises(ClaimsError, match="cannot be claimed"):
        claims.claim_next_attempt("r")
    with pytest.raises(ClaimsError, match="was not recorded"):
        claims.record_outcome(outcome("r", 1))
