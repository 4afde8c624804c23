"""`rollout doctor --live` finds each fault of our side, and its fix works; it blames no sound set-up."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from rollout.doctor.results import CheckStatus, exit_code
from tests.needs.vllm.conftest import API_KEY
from tests.needs.vllm.doctor.bench import Bench, problems
from tests.needs.vllm.doctor.faults import FAULTS, Fault
from tests.unit.cli.in_process import run_cli, set_options


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


@pytest.mark.parametrize("server", ["qwen3-vl", "qwen2.5-vl"])
def test_the_command_proves_everything_and_shows_no_key(server: str, bench_for: Callable[[str], Bench]) -> None:
    bench = bench_for(server)
    settings = set_options(*bench.overrides())
    result = run_cli("doctor", str(bench.config), "--forward", "--json", *settings)
    assert result.returncode == 0, result.stdout + result.stderr
    assert API_KEY not in result.stdout + result.stderr
    messages = {check["subject"].rpartition(" ")[2]: check["message"] for check in json.loads(result.stdout)["checks"]}
    assert "before normalisation, equal bit for bit" in messages["pixels"]
    assert "gives the engine's log-probs" in messages["forward"]
    assert "because the engine computes in float32" in messages["forward"]
    assert 'Materializer.from_pretrained(checkpoint, backend="torchvision")' in messages["forward"]
    assert "processed_logprobs" in messages["forward"]
