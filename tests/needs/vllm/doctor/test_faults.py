"""`rollout doctor --live` finds each fault of our side, and its fix works; it blames no sound set-up."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from rollout.doctor.results import CheckStatus, exit_code
from tests.needs.vllm.doctor.bench import Bench, problems
from tests.needs.vllm.doctor.faults import FAULTS, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_is_found_and_its_fix_works(fault: Fault, bench_for: Callable[[str], Bench]) -> None:
    bench = bench_for(fault.server)
    fault.break_(bench)
    broken = bench.check(forward=fault.forward)
    bad = [result for result in broken if result.status is CheckStatus.BAD]
    assert [result.subject.rpartition(" ")[2] for result in bad] == [fault.subject], broken
    assert fault.message in bad[0].message
    assert fault.fix in f"{bad[0].message} {bad[0].fix}"
    assert exit_code(broken) == fault.exit_code

    fault.repair(bench, f"{bad[0].message} {bad[0].fix}")
    repaired = bench.check(forward=fault.forward)
    assert problems(repaired) == []
    assert exit_code(repaired) == 0


SOUND = {
    "a Qwen3-VL": ("qwen3-vl", {}),
    "a Qwen3-VL that gets images in the request": ("qwen3-vl", {"images.mode": "inline"}),
    "a Qwen2.5-VL of other sizes, with a key": ("qwen2.5-vl", {}),
    "a server without a cache of images": ("no-cache", {}),
}


@pytest.mark.parametrize(("server", "settings"), SOUND.values(), ids=SOUND)
def test_a_sound_set_up_is_not_blamed(
    server: str, settings: Mapping[str, Any], bench_for: Callable[[str], Bench]
) -> None:
    bench = bench_for(server)
    bench.settings |= settings
    results = bench.check(forward=True)
    assert problems(results) == []
    assert exit_code(results) == 0


def test_the_sound_set_ups_differ_in_what_doctor_compares(bench_for: Callable[[str], Bench]) -> None:
    """Otherwise they would prove the same thing several times."""
    geometries = [bench_for(server).geometry() for server in ("qwen3-vl", "qwen2.5-vl")]
    for sizes in zip(*geometries, strict=True):
        assert len(set(sizes)) == len(geometries)
