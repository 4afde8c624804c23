"""Starts a command inside a sandbox without a network, and forwards a TCP port there to the unix socket of the gateway.

    python -I -S relay.py [--forward HOST:PORT SOCKET] -- COMMAND …

The port accepts connections before the command starts. The command leads a session of its own, so it cannot type into
a terminal of the user. The relay passes signals to its process group. It ends with the command: with its exit code, or
with 128 + the number of the signal that ended it. If the command cannot be started, the relay prints a line that begins
with `START_FAILED`, and exits with `START_FAILED_CODE`. It imports only the standard library.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

START_FAILED = "rollout: the program cannot be started: "
START_FAILED_CODE = 127
PASSED_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_CHUNK = 1 << 16
_BACKLOG = 1024


def main(arguments: list[str]) -> int:
    """Start the command; return its exit code when it has ended."""
    end = arguments.index("--")
    options, command = arguments[:end], arguments[end + 1 :]
    early_signals: list[int] = []  # those that arrive before the command has started
    pass_on: Callable[[int], None] = early_signals.append
    for number in PASSED_SIGNALS:
        signal.signal(number, lambda number, _: pass_on(number))
    try:
        if options:
            _, address, socket = options
            _start_forwarding(address, socket)
        process = subprocess.Popen(command, start_new_session=True)  # noqa: S603 - the command of the user's YAML
    except OSError as error:
        print(f"{START_FAILED}{error.filename or command[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return START_FAILED_CODE
    pass_on = lambda number: _signal_group(process.pid, number)  # noqa: E731
    for early_signal in early_signals:
        pass_on(early_signal)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:  # it has ended
        return


def _start_forwarding(address: str, socket: str) -> None:
    """Return when the port accepts connections, or raise OSError if it cannot."""
    import asyncio  # only here, because the import takes longer than everything else

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()

    async def forward(client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        writers = [client_writer]
        try:
            gateway_reader, gateway_writer = await asyncio.open_unix_connection(socket)
            writers.append(gateway_writer)
            await asyncio.gather(copy(client_reader, gateway_writer), copy(gateway_reader, client_writer))
        except OSError:
            pass  # one side is gone, so the other side is closed, too
        finally:
            for writer in writers:
                writer.close()

    host, _, port = address.rpartition(":")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(asyncio.start_server(forward, host, int(port), backlog=_BACKLOG))
    threading.Thread(target=loop.run_forever, daemon=True).start()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # connections that are still open have no reader any more
