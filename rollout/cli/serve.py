"""`rollout serve …`: engines as servers of their own."""

import os
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from rollout.images.processors import import_trainer_extra
from rollout.serving.embedded import EmbeddedSettings
from rollout.serving.network.settings import NetworkSettings
from rollout.serving.vllm import VllmFailed, VllmServer, VllmSettings

_START_TIMEOUT = 1800.0
"""A large checkpoint may have to be downloaded first."""
_LINE_EVERY = 10.0


def serve_embedded(settings: EmbeddedSettings, *, port: int) -> None:
    from rollout.serving.embedded import EmbeddedServer
    from rollout.serving.server import serve_until_signal

    def announce(url: str) -> None:
        sys.stdout.write(
            f"serving {settings.model_name} by the script {settings.policy} at {url}; no neural network is inside\n"
            f"in the YAML:  engine: {{urls: [{url}]}}\n"
        )
        sys.stdout.flush()

    serve_until_signal(EmbeddedServer(settings, port=port), announce)


def serve_network(settings: NetworkSettings, *, port: int) -> None:
    """Serve until SIGINT or SIGTERM. Raises ConfigurationError where torch or transformers is missing."""
    for extra in ("torch", "transformers"):
        import_trainer_extra(extra)
    from rollout.serving.network.engine import NetworkEngine
    from rollout.serving.server import EngineServer, serve_until_signal

    engine = NetworkEngine(settings)

    def announce(url: str) -> None:
        sys.stdout.write(
            f"serving {engine.model_card.name} at {url}\n"
            "in the YAML:\n"
            f"  model: {{name: {engine.model_card.name}, path: {settings.model_dir.resolve()}}}\n"
            f"  engine: {{urls: [{url}]}}\n"
        )
        sys.stdout.flush()

    serve_until_signal(EngineServer(engine, weight_version=settings.weight_version, port=port), announce)


def serve_vllm(settings: VllmSettings) -> int:
    """Serve until SIGINT or SIGTERM, after which vLLM has some seconds to end; a second Ctrl-C ends it at once."""
    log = _new_log(settings.port)
    server = VllmServer(settings, log)
    # One way out for both: whatever waits is interrupted, and vLLM is ended on the way.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.start()
        with Progress(log) as progress:
            server.wait_until_ready(_START_TIMEOUT, progress)
        _announce(settings, log)
        server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.stop()
        signal.signal(signal.SIGTERM, previous)
    raise VllmFailed(f"vLLM ended by itself; its log is {log}.")


def _new_log(port: int) -> Path:
    # Of a name that nobody could have prepared, for others may write to the directory, too.
    descriptor, path = tempfile.mkstemp(prefix=f"rollout-vllm-{port}-", suffix=".log")
    os.close(descriptor)
    return Path(path)


def _announce(settings: VllmSettings, log: Path) -> None:
    path = str(Path(settings.model).resolve()) if Path(settings.model).is_dir() else "DIRECTORY"
    sys.stdout.write(
        f"serving {settings.served_name} at {settings.url}; its log is {log}\n"
        "in the YAML:\n"
        f"  model: {{name: {settings.served_name}, path: {path}, renderer: RENDERER}}\n"
        f"  engine: {{urls: [{settings.url}]}}\n"
        f"  run: {{directory: {settings.media_directory.resolve()}}}\n"
        "where RENDERER is the model's chat format, such as qwen3-vl"
        f"{', and DIRECTORY holds its tokenizer and processor files' if path == 'DIRECTORY' else ''}\n"
    )
    sys.stdout.flush()


class Progress:
    """How long it takes so far, and what vLLM says: one line that changes on a terminal, elsewhere one now and then."""

    def __init__(self, log: Path) -> None:
        self._console = Console(stderr=True)
        self._status = self._console.status(f"starting vLLM; its log is {log}")
        self._last = 0.0

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def __call__(self, seconds: float, line: str) -> None:
        told = f"starting vLLM, {seconds:.0f} s: {line.rpartition('] ')[2][:100]}"
        if self._console.is_terminal:
            self._status.update(escape(told))
        elif seconds - self._last >= _LINE_EVERY:
            self._last = seconds
            self._console.print(told, highlight=False, markup=False)
