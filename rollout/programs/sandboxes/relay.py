"""Starts a command inside a sandbox without a network, and forwards a TCP port there to the unix socket of the gateway.

    python -I -S relay.py [--forward HOST:PORT SOCKET] -- COMMAND …

The port accepts connections before the command starts. The relay passes signals to the command, and ends with it: with
its exit code, or with 128 + the number of the signal that ended it. If the command cannot be started, the relay prints
a line that begins with `START_FAILED`, and exits with `START_FAILED_CODE`. It imports only the standard library.
"""

import os
import sys

START_FAILED = "rollout: the program cannot be started: "
START_FAILED_CODE = 127
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
_CHUNK = 1 << 16


def main(arguments: list[str]) -> int:
    """Start the command; return its exit code when it has ended."""
    end = arguments.index("--")
    options, command = arguments[:end], arguments[end + 1 :]
    try:
        if not options:
            os.execvp(command[0], command)  # noqa: S606 - the command of the user's YAML
        import asyncio  # only here, because the import takes longer than everything else

        _, address, socket = options
        return asyncio.run(_forward_and_run(address, socket, command))
    except OSError as error:
        print(f"{START_FAILED}{error.filename or command[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return START_FAILED_CODE


async def _forward_and_run(address: str, socket: str, command: list[str]) -> int:
    import asyncio
    import signal

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

    early_signals: list[int] = []  # those that arrive before the command has started
    pass_on = early_signals.append
    for name in _SIGNALS:
        number = getattr(signal, name)
        asyncio.get_running_loop().add_signal_handler(number, lambda number: pass_on(number), number)
    host, _, port = address.rpartition(":")
    await asyncio.start_server(forward, host, int(port), backlog=1024)
    process = await asyncio.create_subprocess_exec(*command)
    pass_on = process.send_signal
    for number in early_signals:
        process.send_signal(number)
    code = await process.wait()
    os._exit(code if code >= 0 else 128 - code)  # at once: connections that are still open have no reader any more


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
