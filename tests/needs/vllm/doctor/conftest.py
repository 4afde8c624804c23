"""Makes the set-ups that doctor checks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.needs.vllm.doctor.bench import Bench


@pytest.fixture
def bench_for(
    fleet: Mapping[str, Any],
    media: Path,
    repository: Path,
    checkpoints: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], Bench]:
    """Makes a sound set-up for one of the servers."""

    def make(server: str) -> Bench:
        live = fleet[server]
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
