"""A stand-in for the Docker CLI. Its grammar, texts and exit codes were recorded from docker 28.2 with dockerd 20.10.

It knows the options that we use, and refuses all others. A container is a process of this machine: it has the
variables, the working directory and the command of the container, but all files of the machine. It outlives its client,
as real containers do. The state is in files beside this one. `calls` has the arguments of each call as a line of JSON,
`containers` has the pid of each container, and `down` says that the daemon does not answer.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

STATE = Path(__file__).parent
VERSION, IMAGES, NETWORKS = "20.10.24", ("rollout-test", "rollout-test:latest"), ("bridge", "host", "none")
FLAGS = ("rm", "init", "interactive")
OPTIONS = (
    *("name", "pull", "log-driver", "network", "add-host", "mount", "workdir", "user", "cap-drop", "security-opt"),
    *("memory", "memory-swap", "pids-limit", "env", "entrypoint"),
)


def fail(code: int, text: str) -> int:
    print(text, file=sys.stderr)
    return code


def refuse(text: str) -> int:
    return fail(125, f"docker: {text}\n\nRun 'docker run --help' for more information")


def run(arguments: list[str]) -> int:
    given: dict[str, list[str]] = {}
    while arguments and arguments[0].startswith("--"):
        name, equals, value = arguments.pop(0)[2:].partition("=")
        if name in FLAGS:
            value = "true"
        elif name not in OPTIONS:
            return fail(125, f"unknown flag: --{name}\n\nUsage:  docker run [OPTIONS] IMAGE [COMMAND] [ARG...]")
        elif not equals:
            if not arguments:
                return fail(125, f"flag needs an argument: --{name}")
            value = arguments.pop(0)
        given.setdefault(name, []).append(value)
    if not arguments:
        return fail(1, "docker: 'docker run' requires at least 1 argument")
    image, *command = arguments
    if (STATE / "down").exists():
        return refuse(
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
        )
    if image not in IMAGES:
        assert given.get("pull") == ["never"], "the image would be pulled"
        return refuse(f"Error response from daemon: No such image: {image}")
    mounts = [dict(part.partition("=")[::2] for part in mount.split(",")) for mount in given.get("mount", ())]
    for mount in mounts:
        if not os.path.exists(mount["source"]):
            reason = f"bind source path does not exist: {mount['source']}"
            return refuse(f'Error response from daemon: invalid mount config for type "bind": {reason}')
    if given["network"][0] not in NETWORKS:
        return refuse(f"Error response from daemon: network {given['network'][0]} not found")
    return start(given, [*given.get("entrypoint", ()), *command])


def start(given: dict[str, list[str]], command: list[str]) -> int:
    environ = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME": "container"}
    for setting in given.get("env", ()):
        name, equals, value = setting.partition("=")
        if equals or name in os.environ:
            environ[name] = value if equals else os.environ[name]
    stdin = None if "interactive" in given else subprocess.DEVNULL
    try:
        process = subprocess.Popen(command, stdin=stdin, env=environ, cwd=given["workdir"][0], start_new_session=True)
    except FileNotFoundError:
        return fail(127, f"[FATAL tini (7)] exec {command[0]} failed: No such file or directory")
    container = STATE / "containers" / given["name"][0]
    container.write_text(str(process.pid))
    signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))  # as --sig-proxy does
    code = process.wait()
    if "rm" in given:
        container.unlink(missing_ok=True)
    return code if code >= 0 else 128 - code


def remove(name: str) -> int:
    container = STATE / "containers" / name
    if not container.exists():
        return fail(0, f"Error response from daemon: No such container: {name}")
    with suppress(ProcessLookupError):  # it has just ended
        os.killpg(int(container.read_text()), signal.SIGKILL)
    container.unlink(missing_ok=True)
    print(name)
    return 0


def main(arguments: list[str]) -> int:
    with (STATE / "calls").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    is_down = (STATE / "down").exists()
    match arguments:
        case ["run", *rest]:
            return run(rest)
        case _ if is_down:
            print()
            return fail(
                1, "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
            )
        case ["version", "--format", "{{.Server.Version}}"]:
            print(VERSION)
            return 0
        case ["image", "inspect", "--format", "{{.Id}}", image]:
            if image in IMAGES:
                print("sha256:b7603f07580a592324ed5f471325ad450a7cb3e5b321dd2e6190b02bb1a7e26e")
                return 0
            print()
            return fail(1, f"Error response from daemon: no such image: {image}: No such image: {image}")
        case ["rm", "--force", name]:
            return remove(name)
        case _:
            return fail(1, f"this stand-in does not know the command {arguments}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
