"""Runs one of our engines in a thread beside other work, or alone until a signal comes.

    with EngineServer(engine, weight_version="0") as url:
        ...

It listens on loopback only, because it reads files for every client. It never prints.
"""

import signal
import socket
import threading
import time
from collections.abc import Callable

import uvicorn

from rollout.errors import RolloutError
from rollout.serving.endpoint import create_app
from rollout.serving.engine import Engine
from rollout.serving.request_limits import HeadDeadlineProtocol

_HOST = "127.0.0.1"
_START_TIMEOUT_SECONDS = 15.0
_STOP_TIMEOUT_SECONDS = 10.0


class ServerFailed(RolloutError):
    """The engine did not start, or ended without a request to stop."""


class EngineServer:
    """Serves an engine in a thread with its own event loop. A server can start only once.

    With an `api_key`, every request except `/health` must have this key.
    """

    def __init__(self, engine: Engine, *, weight_version: str, port: int = 0, api_key: str | None = None) -> None:
        self._port = port
        self._server = uvicorn.Server(
            uvicorn.Config(
                create_app(engine, weight_version=weight_version, api_key=api_key),
                http=HeadDeadlineProtocol,  # h11 also limits the size of a request's head
                ws="none",
                log_config=None,
                log_level="critical",
                access_log=False,
                lifespan="on",
                timeout_graceful_shutdown=1,
            )
        )
        self._thread: threading.Thread | None = None

    def start(self) -> str:
        """Listen, wait until requests are answered, and return the root URL.

        Raises:
            ServerFailed: the port is in use, or the server did not start in time.
        """
        # With the protocol named, asyncio turns Nagle's algorithm off; otherwise answers take 40 ms longer.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((_HOST, self._port))
        except OSError as error:
            listener.close()
            raise ServerFailed(
                f"The engine cannot listen on {_HOST}:{self._port} ({error.strerror}); "
                "choose another port, or 0 for a free one."
            ) from error
        url = f"http://{_HOST}:{listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="engine", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while not self._server.started:
            if not self.running or time.monotonic() > deadline:
                self.stop()
                raise ServerFailed(f"The engine did not start at {url} within {_START_TIMEOUT_SECONDS:g} s.")
            time.sleep(0.002)
        return url

    @property
    def running(self) -> bool:
        """Whether the server still runs."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """Stop the server. Requests in flight get one second; then their connections are closed."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT_SECONDS)

    def __enter__(self) -> str:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve_until_signal(server: EngineServer, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM. When requests are answered, call `on_ready` with the URL. For the main thread.

    Raises:
        ServerFailed: the server did not start, or ended by itself.
    """
    stop_requested = threading.Event()
    previous_handlers = {
        signal_number: signal.signal(signal_number, lambda *_: stop_requested.set())
        for signal_number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with server as url:
            on_ready(url)
            while not stop_requested.wait(0.5):
                if not server.running:
                    raise ServerFailed(f"The engine at {url} ended by itself.")
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
