"""Claims: no two attempts have the same number, and a rollout with an outcome stays done."""

import errno
import os
import threading
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from rollout.rundir.claims import AttemptHistory, Claims, ClaimsError, Outcome


def outcome(rollout: str, attempt: int, reward: float = 1.0) -> Outcome:
    return Outcome(rollout=rollout, group="g", attempt=attempt, status="ok", reward=reward)


def outcome_bytes(**changes: object) -> bytes:
    return orjson.dumps({**asdict(outcome("r", 1)), **changes})


def test_attempts_are_numbered_in_turn(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    numbers = [claims.claim_next_attempt("r").attempt_number for _ in range(3)]
    assert numbers == [1, 2, 3]
    assert claims.attempt_history("r") == AttemptHistory(attempts_used=3, unreported_attempts=3)
    assert claims.attempt_history("another") == AttemptHistory(0, 0)


def test_a_returned_attempt_keeps_its_number_and_is_not_counted(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    first = claims.claim_next_attempt("r")
    claims.mark_returned(first)
    claims.mark_returned(first)
    second = claims.claim_next_attempt("r")
    assert (second.attempt_number, second.attempts_used) == (2, 1)


def test_a_failed_attempt_counts_and_is_not_unreported(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    claims.mark_failed(claims.claim_next_attempt("r"))
    claims.claim_next_attempt("r")
    claims.mark_returned(claims.claim_next_attempt("r"))
    assert claims.attempt_history("r") == AttemptHistory(attempts_used=2, unreported_attempts=1)


def test_concurrent_claims_have_different_numbers(tmp_path: Path) -> None:
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


def test_the_first_outcome_is_kept(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    first, second = claims.claim_next_attempt("r"), claims.claim_next_attempt("r")
    assert not claims.is_done("r")
    assert claims.outcome("r") is None
    claims.record_outcome(outcome("r", second.attempt_number, reward=0.5))
    claims.record_outcome(outcome("r", first.attempt_number, reward=1.0))
    assert claims.is_done("r")
    assert claims.outcome("r") == outcome("r", second.attempt_number, reward=0.5)
    assert list(claims.new_outcomes(set())) == [outcome("r", second.attempt_number, reward=0.5)]


@given(names=st.sets(st.text(min_size=1, max_size=300), min_size=2, max_size=6))
def test_rollouts_with_any_names_have_separate_claims(
    tmp_path_factory: pytest.TempPathFactory, names: set[str]
) -> None:
    claims = Claims(tmp_path_factory.mktemp("claims"))
    for name in names:
        assert claims.claim_next_attempt(name).attempt_number == 1


@pytest.mark.parametrize("content", [b"", b"{", b"7", b"\xff", b'{"rollout": "r"}', outcome_bytes(status="lost")])
def test_a_rollout_with_a_damaged_outcome_stays_done_and_is_logged_once(tmp_path: Path, content: bytes) -> None:
    claims = Claims(tmp_path)
    claims.record_outcome(outcome("r", claims.claim_next_attempt("r").attempt_number))
    claims.record_outcome(outcome("s", claims.claim_next_attempt("s").attempt_number))
    damaged = next(tmp_path.glob("r-*.done"))
    damaged.write_bytes(content)
    with capture_logs() as logs:
        assert [found.rollout for found in claims.new_outcomes(set())] == ["s"]
        assert claims.outcome("r") is None
    assert claims.is_done("r")
    assert [entry["file"] for entry in logs] == [str(damaged)]


@pytest.mark.parametrize(
    ("old", "ending"),
    [
        ({"status": "truncated", "reward": 0.5}, ("ok", "tokens", 0.5)),
        ({"status": "truncated", "reward": 0.0, "error": {"type": "ContextExhausted"}}, ("unscored", "context", None)),
        ({"status": "ok", "reward": 0.5}, ("ok", "none", 0.5)),
    ],
)
def test_an_outcome_in_the_old_format_without_a_limit_is_read(
    tmp_path: Path, old: dict[str, Any], ending: tuple[str, str, float | None]
) -> None:
    claims = Claims(tmp_path)
    claims.record_outcome(Outcome("r", "g", claims.claim_next_attempt("r").attempt_number, "ok"))
    next(tmp_path.glob("r-*.done")).write_bytes(orjson.dumps({"rollout": "r", "group": "g", "attempt": 1, **old}))
    outcome = claims.outcome("r")
    assert outcome is not None
    assert (outcome.status, outcome.limit, outcome.reward) == ending


@pytest.mark.parametrize("counts", [{}, {"turns": 3, "foreign: message inserted": 1}])
def test_an_outcome_has_what_happened_in_the_gateway_if_a_program_used_it(
    tmp_path: Path, counts: dict[str, int]
) -> None:
    claims = Claims(tmp_path)
    claims.record_outcome(Outcome("r", "g", claims.claim_next_attempt("r").attempt_number, "ok", gateway=counts))
    assert ("gateway" in orjson.loads(next(tmp_path.glob("r-*.done")).read_bytes())) == bool(counts)
    found = claims.outcome("r")
    assert found is not None
    assert found.gateway == counts


def test_an_outcome_on_a_full_disk_is_not_recorded_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = Claims(tmp_path)
    claim = claims.claim_next_attempt("r")

    def write_half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(ClaimsError, match=r"cannot be written: No space left on device\.") as caught:
        claims.record_outcome(outcome("r", claim.attempt_number))
    assert caught.value.infrastructure
    assert not claims.is_done("r")


def test_a_rollout_can_be_claimed_again_if_its_worker_dies_while_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims(tmp_path)
    claim = claims.claim_next_attempt("r")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            claims.record_outcome(outcome("r", claim.attempt_number))
    assert not claims.is_done("r")
    second = claims.claim_next_attempt("r")
    assert second.attempt_number == 2
    claims.record_outcome(outcome("r", second.attempt_number))
    assert claims.outcome("r") == outcome("r", 2)


def test_a_directory_that_cannot_be_used_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ClaimsError, match="cannot be created"):
        Claims(tmp_path / "file" / "claims")
    claims = Claims(tmp_path / "claims")
    (tmp_path / "claims").rmdir()
    with pytest.raises(ClaimsError, match="cannot be written"):
        claims.claim_next_attempt("r")
    with pytest.raises(ClaimsError, match="cannot be written"):
        claims.record_outcome(outcome("r", 1))
