"""The guardian: a small process that starts one program, reads its output, and ends all its processes.

`rollout.programs.process.run_program` starts it. The first line of its standard input is a `Job` as JSON. Then the
worker writes `stop` if the program must end early. The end of the input means that the worker is dead. The guardian
prints lines of JSON: `{"session": 123}` when the program has started, and the fields of `ProgramEnd` when nothing of it
is left; or `{"cannot_start": "why"}`.

On Linux, a process whose parent dies becomes a child of the guardian. So nothing of a program is left when the guardian
has no child, whatever the program did. The guardian imports only the standard library, because it must start quickly.
"""

import json
import os
import select
import signal
import sys
import time

from rollout.programs.cgroups import ControlGroup
from rollout.programs.output import OutputFile
from rollout.programs.process_tree import find_descendants, kill_all
from rollout.programs.program_start import CannotStart, Job, become_program, become_subreaper

GRACE_SECONDS = 2.0
"""The time between SIGTERM and SIGKILL."""
KILL_SECONDS = 10.0
"""The time after which we no longer wait for killed processes."""
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The guardian ends when the worker does; the program gets the default signals."""
CLEANUP_SECONDS = 10.0
"""The time for each command of `cleanup`."""

_CONTROL, _ANSWERS = 0, 1
_READ_BYTES = 64 << 10


class ProgramGuard:
    """Runs the program of one job to its end.

    Attributes:
        worker_died: whether the worker died meanwhile.
    """

    def __init__(self, job: Job) -> None:
        self.worker_died = False
        self._job = job
        self._group = None if job.place is None else ControlGroup(job.place, os.path.basename(job.root))
        self._reason = "exited"
        self._kill_at: float | None = None
        self._unread = memoryview(job.stdin.encode(errors="replace"))
        self._pid = 0
        self._status: int | None = None
        self._ended_at = 0.0
        self._refused_forks = 0

    def run(self) -> dict[str, object]:
        """Start the program and end it; return how it ended.

        Raises:
            CannotStart: it cannot be started.
        """
        self._wake_end, wake_start = os.pipe()
        for file in (self._wake_end, wake_start):
            os.set_blocking(file, False)
        signal.set_wakeup_fd(wake_start, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        started_at = time.monotonic()
        try:
            self._start()
            print_answer({"session": self._pid})
            self._watch(started_at + self._job.seconds)
        finally:
            left = self._end_all()
        self._drain_output()
        incomplete = self._output.close()
        return {
            "reason": self._reason,
            "exit_code": -signal.SIGKILL if self._status is None else os.waitstatus_to_exitcode(self._status),
            "seconds": (self._ended_at or time.monotonic()) - started_at,
            "output_bytes": self._output.total_bytes,
            "refused_processes": self._refused_forks > 0,
            "left": sorted(left),
            "incomplete_output": incomplete,
        }

    def _start(self) -> None:
        try:
            self._output = OutputFile(self._job.output)
        except OSError as error:
            raise CannotStart(
                f"the file {self._job.output} for its output cannot be written: {error.strerror}"
            ) from error
        if self._group is not None:
            try:
                self._group.create(self._job.memory_bytes, self._job.processes)
            except OSError as error:
                raise CannotStart(f"its cgroup {error.filename} cannot be made: {error.strerror}") from error
        stdin, self._stdin_start = os.pipe()
        self._output_end, output = os.pipe()
        failure_end, failure_start = os.pipe()
        parent = os.getpid()
        try:
            self._pid = os.fork()
        except OSError as error:
            raise CannotStart(f"no process can be started: {error.strerror}") from error
        if self._pid == 0:
            become_program(self._job, self._group, parent, (stdin, output, output), failure_start)
        for file in (stdin, output, failure_start):
            os.close(file)
        with os.fdopen(failure_end, "rb") as failures:
            failure = failures.read().decode()
        if failure:
            raise CannotStart(failure)
        for file in (self._stdin_start, self._output_end):
            os.set_blocking(file, False)

    def _watch(self, timeout_at: float) -> None:
        """Return when the program has ended, or must be killed."""
        poll = select.poll()
        for file in (_CONTROL, self._output_end, self._wake_end):
            poll.register(file, select.POLLIN)
        poll.register(self._stdin_start, select.POLLOUT)
        while self._status is None:
            if time.monotonic() >= (self._kill_at or timeout_at):
                if self._kill_at is not None:
                    return
                self._terminate("timeout")
            seconds = (self._kill_at or timeout_at) - time.monotonic()
            for file, _ in poll.poll(max(0.0, seconds) * 1000):
                if file == _CONTROL:
                    if not os.read(file, _READ_BYTES):
                        self.worker_died = True
                        return
                    self._terminate(self._reason)
                elif file == self._stdin_start:
                    if self._feed():
                        poll.unregister(file)
                        os.close(file)
                elif file == self._output_end:
                    if not self._read_output():
                        poll.unregister(file)
                    if self._reason == "output":
                        return
                else:
                    os.read(file, _READ_BYTES)
                    self._has_children()

    def _terminate(self, reason: str) -> None:
        """Ask the processes of the group to end, once."""
        if self._kill_at is None:
            self._reason = reason
            self._kill_at = time.monotonic() + GRACE_SECONDS
            _kill_group(self._pid, signal.SIGTERM)  # nobody has waited for it, so no other group has this number

    def _feed(self) -> bool:
        """Write what fits of the standard input; return whether all of it is written, or nobody reads it."""
        try:
            while self._unread:
                self._unread = self._unread[os.write(self._stdin_start, self._unread) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            return True
        return True

    def _read_output(self) -> bool:
        """Read once what the program has printed; return whether there may be more."""
        try:
            data = os.read(self._output_end, _READ_BYTES)
        except BlockingIOError:
            return False
        self._output.add(data)
        if self._output.total_bytes > self._job.output_bytes and self._kill_at is None:
            self._reason = "output"
        return bool(data)

    def _end_all(self) -> set[int]:
        """Kill what is left of the program, and clean up; return the pids of processes that cannot be killed."""
        if self._group is not None:
            self._refused_forks = self._group.refused_forks()  # before `kill_all` refuses some itself
        if self._pid and (self._status is None or sys.platform != "linux"):
            _kill_group(self._pid, signal.SIGKILL)
        left = self._kill_descendants()
        if self._job.cleanup:
            from rollout.programs.cleanup import run_cleanup

            run_cleanup(self._job.cleanup, CLEANUP_SECONDS)
            left = self._kill_descendants()
        if self._group is not None:
            if self._group.memory_kills() and self._reason != "output":
                self._reason = "memory"
            self._group.remove()
        return left

    def _kill_descendants(self) -> set[int]:
        return kill_all(self._find_processes, self._group, KILL_SECONDS)

    def _find_processes(self) -> set[int]:
        if not self._has_children():
            return set()
        return find_descendants(os.getpid()) | ({self._pid} if self._pid and self._status is None else set())

    def _has_children(self) -> bool:
        """Wait for the children that have ended; return whether there are others."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return True
                if pid == self._pid:
                    self._status, self._ended_at = status, time.monotonic()
        except ChildProcessError:
            return False

    def _drain_output(self) -> None:
        """Read what the program has printed at last. A process that cannot be killed may hold the pipe open."""
        while self._reason != "output" and self._read_output():
            continue


def _kill_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS refuses to signal a group of zombies
        return


def print_answer(answer: dict[str, object]) -> None:
    """Write one line for the worker. Do nothing if the worker is dead; the end of the input says that, too."""
    try:
        os.write(_ANSWERS, json.dumps(answer).encode() + b"\n")
    except BrokenPipeError:
        return


def read_job() -> tuple[Job, bool] | None:
    """Read the job; return it and whether it must stop before it starts. Return None if the worker died."""
    parts = []
    while True:
        part = os.read(_CONTROL, _READ_BYTES)
        if not part:
            return None
        line, newline, rest = part.partition(b"\n")
        parts.append(line)
        if newline:
            return Job(json.loads(b"".join(parts))), bool(rest)


def is_worker_dead() -> bool:
    """Whether the worker has closed our input."""
    while select.select([_CONTROL], [], [], 0)[0]:
        if not os.read(_CONTROL, _READ_BYTES):
            return True
    return False


def main() -> None:
    """Run the job that the worker writes."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    become_subreaper()
    read = read_job()
    if read is None:
        return
    job, stops_early = read
    os.set_inheritable(job.lock_fd, False)  # it is not the program's, so that it is free when we have ended
    guard = ProgramGuard(job)
    answer: dict[str, object] = {}
    try:
        if not stops_early:
            answer = guard.run()
    except CannotStart as error:
        answer = {"cannot_start": str(error)}
    if guard.worker_died or is_worker_dead():
        from rollout.programs.directories import remove_root

        try:
            remove_root(job.root)
        except OSError:  # a file of another user stays; there is no worker that could report it
            return
    else:
        print_answer(answer)
