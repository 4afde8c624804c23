"""What `rollout.trainer` exports, where torch is not installed."""

import sys
from importlib import import_module

import pytest

from rollout.errors import ConfigurationError

NEED_TORCH = {
    "batch_of": "rollout.trainer.batches.tensors",
    "compare_logprobs": "rollout.trainer.batches.comparison",
    "TrajectoryDataset": "rollout.trainer.batches.torch_data",
}


@pytest.mark.parametrize("name", NEED_TORCH)
def test_a_function_that_needs_torch_names_the_extra_that_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in NEED_TORCH.values():
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigurationError, match=rf"{name} needs torch.* pip install 'rollout-rl\[trainer\]'"):
        getattr(import_module("rollout.trainer"), name)
