"""Imports the `renderers` package without the SDK that its HTTP client names in annotations.

Nothing here uses that client. The SDK's import would take half of the time and 20 MB in every worker.
"""

import importlib
import sys
import threading
from types import ModuleType
from typing import Any

_SDK = "openai"
_lock = threading.Lock()


def import_renderers(module: str = "renderers") -> Any:
    """Import a module of the `renderers` package."""
    with _lock:
        if "renderers" in sys.modules or _SDK in sys.modules:
            return importlib.import_module(module)
        stand_in = ModuleType(_SDK)
        stand_in.AsyncOpenAI = object  # type: ignore[attr-defined]
        sys.modules[_SDK] = stand_in
        try:
            return importlib.import_module(module)
        finally:
            del sys.modules[_SDK]
