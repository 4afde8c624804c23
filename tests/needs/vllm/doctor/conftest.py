"""Makes the set-ups that doctor checks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.needs.vllm.doctor.bench import Bench
from tests.needs.vllm.servers import VENV, LiveServer

collect_ignore_glob = [] if VENV else ["test_*.py"]


@pytest.fixture
def bench_of(
    media: Path,
    repository: Path,
    checkpoints: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[LiveServer], Bench]:
    """Makes the right configuration for a server."""

    def make(live: LiveServer) -> Bench:
        config = repository / "configs" / "color_codeword.yaml"
        bench = Bench(live, config, {}, media / "runs", tmp_path, monkeypatch, checkpoints)
        bench.set(
            engine__urls=[live.url],
            engine__retries=0,
            model__name="tiny",
            model__path=live.model_dir,
            model__renderer=live.renderer,
            run__directory=bench.media,
        )
        bench.use_key()
        return bench

    return make


@pytest.fixture
def bench_for(fleet: Mapping[str, Any], bench_of: Callable[[LiveServer], Bench]) -> Callable[[str], Bench]:
    """Makes the right configuration for a server of the fleet."""
    return lambda server: bench_of(fleet[server])
