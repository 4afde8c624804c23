"""`rollout serve …`: engines as servers of their own."""

import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from rollout.serving.embedded import EmbeddedSettings
from rollout.serving.vllm import VllmFailed, VllmServer, VllmSettings

_START_TIMEOUT = 1800.0
"""A large checkpoint may have to be downloaded first."""
_LINE_EVERY = 10.0


def serve_embedded(settings: EmbeddedSettings, *, port: int) -> None:
    from rollout.serving.embedded import EmbeddedServer
    from rollout.serving.server import serve

    def announce(url: str) -> None:
        sys.stdout.write(
            f"serving {settings.model_name} by the script {settings.policy} at {url}; no neural network is inside\n"
            f"in the YAML:  engine: {{urls: [{url}]}}\n"
        )
        sys.stdout.flush()

    serve(EmbeddedServer(settings, port=port), announce)


def serve_vllm(settings: VllmSettings) -> int:
    """Serve until SIGINT or SIGTERM, which vLLM is told of, too; its exit code, or 0 after a signal."""
    log = Path(tempfile.gettempdir()) / f"rollout-vllm-{settings.port}.log"
    server = VllmServer(settings, log)
    told: list[int] = []

    def forward(number: int, _: object) -> None:
        told.append(number)
        server.send(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.start()
        try:
            with _Progress(log) as progress:
                server.wait_until_ready(_START_TIMEOUT, progress)
        except VllmFailed:
            if told:
                return 0
            raise
        _announce(settings, log)
        while not server.wait(1.0):
            pass
    finally:
        server.stop()
        for number, handler in previous.items():
            signal.signal(number, handler)
    if not told:
        raise VllmFailed(f"vLLM ended by itself; its log is {log}.")
    return 0


def _announce(settings: VllmSettings, log: Path) -> None:
    path = f", path: {Path(settings.model).resolve()}" if Path(settings.model).is_dir() else ""
    sys.stdout.write(
        f"serving {settings.served_name} at {settings.url}; its log is {log}\n"
        "in the YAML:\n"
        f"  model: {{name: {settings.served_name}{path}}}\n"
        f"  engine: {{urls: [{settings.url}]}}\n"
        f"  run: {{directory: {settings.media.resolve()}}}\n"
    )
    sys.stdout.flush()


class _Progress:
    """How long it takes so far, and what vLLM says: one line that changes on a terminal, elsewhere one now and then."""

    def __init__(self, log: Path) -> None:
        self._console = Console(stderr=True)
        self._status = self._console.status(f"starting vLLM; its log is {log}")
        self._last = 0.0

    def __enter__(self) -> "_Progress":
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def __call__(self, seconds: float, line: str) -> None:
        told = f"starting vLLM, {seconds:.0f} s: {line.rpartition('] ')[2][:100]}"
        if self._console.is_terminal:
            self._status.update(told)
        elif seconds - self._last >= _LINE_EVERY:
            self._last = seconds
            self._console.print(told, highlight=False, markup=False)
