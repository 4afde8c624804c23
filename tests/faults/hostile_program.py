"""A program that misbehaves: `hostile_program.py KIND`. The kind `good` plays one turn and ends well."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from urllib.parse import urlsplit

KEY = os.environ["OPENAI_API_KEY"]


def ask() -> None:
    """Ask the policy once."""
    address = urlsplit(os.environ["OPENAI_BASE_URL"])
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=120)
    body = json.dumps({"model": "policy", "messages": [{"role": "user", "content": f"Go on with {KEY}."}]})
    connection.request("POST", f"{address.path}/chat/completions", body, {"Authorization": f"Bearer {KEY}"})
    assert connection.getresponse().status == 200


def fork_bomb() -> None:
    """Fork for ever, in every process."""
    while True:
        with contextlib.suppress(OSError):
            os.fork()


def flood() -> None:
    """Print a gigabyte."""
    block = b"x" * (1 << 20)
    for _ in range(1024):
        os.write(1, block)


def ignore_signals() -> None:
    """Ignore SIGTERM, and never end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(1)


def close_nothing() -> None:
    """End with an open request, an open file, and processes in sessions of their own that hold the output."""
    for _ in range(3):
        subprocess.Popen(["sleep", "3600"], start_new_session=True)
    address = urlsplit(os.environ["OPENAI_BASE_URL"])
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    connection.putrequest("POST", f"{address.path}/chat/completions")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b"{")
    os._exit(1)


def print_the_key() -> None:
    """Print the key, whole and in pieces, write it into files and into names of files, and fail."""
    print(KEY, f"{KEY[:20]}\n", flush=True)
    for character in KEY:
        os.write(2, character.encode())
        time.sleep(0.01)
    for name in ("work.txt", f"{KEY}.txt", "settings.bin"):
        with open(name, "wb") as file:
            file.write(b"\0" + KEY.encode() * 3)
    raise RuntimeError(f"failed with {KEY}")


def allocate() -> None:
    """Take memory until there is no more."""
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20)) * 16)


if __name__ == "__main__":
    ask()
    kind = sys.argv[1]
    if kind != "good":
        globals()[kind]()
