"""What the fuzz scripts share: cases from a seed, a child process that tries them, counts of the outcomes.

A script has two functions. One makes the input of a case from a random generator. The other passes it to our code and
returns a short name of the outcome ("accepted", "refused: …"). An error that the script does not name is a problem, and
so is a case that needs too many operations or too much memory. A case without progress for a minute is killed and
reported; slow cases are no problem.
"""

import argparse
import multiprocessing
import os
import random
import resource
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, TypeVar

MEMORY_ALLOWED = 200 << 20
SECONDS_WITHOUT_PROGRESS = 60.0
PROBLEMS_SHOWN = 20

Input = TypeVar("Input")


class TooManyOperationsError(BaseException):
    """A case called more functions than its script allows. It is no Exception, so that our code does not catch it."""


class OperationLimit:
    """Counts the calls of Python and C functions inside its block and ends the block at a limit."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def __enter__(self) -> None:
        sys.setprofile(self._count)

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)

    def _count(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            self._left -= 1
            if self._left < 0:
                sys.setprofile(None)
                raise TooManyOperationsError


class PeakMemory:
    """Measures how much the peak memory of this process grew since `start`.

    If Linux does not let us reset the peak, only growth above the earlier peak is measured.
    """

    def __init__(self) -> None:
        self._before = 0
        self._clear_refs: int | None = None
        with suppress(OSError):
            self._status = os.open("/proc/self/status", os.O_RDONLY)
            self._clear_refs = os.open("/proc/self/clear_refs", os.O_WRONLY)

    def start(self) -> None:
        if self._clear_refs is not None:
            try:
                os.pwrite(self._clear_refs, b"5", 0)
            except OSError:
                self._clear_refs = None
        self._before = self._peak()

    def grown(self) -> int:
        return self._peak() - self._before

    def _peak(self) -> int:
        if self._clear_refs is None:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        _, _, after = os.pread(self._status, 4096, 0).partition(b"VmHWM:")
        return int(after.split(maxsplit=1)[0]) * 1024


def fuzz(
    description: str,
    make: Callable[[random.Random], Input],
    attempt: Callable[[Input], str],
    *,
    named_errors: tuple[type[Exception], ...],
    operations: int | None = 100_000,
    around: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> int:
    """Read `--count`, `--seed` and `--only` from the command line, try the cases, and print the counts.

    Args:
        description: the script's docstring, for `--help`.
        make: makes the input of one case.
        attempt: passes the input to our code, and returns a short name of the outcome.
        named_errors: what our code may raise; any other error is a problem.
        operations: how many function calls one attempt may make; None if the script counts them itself.
        around: a context for all attempts, for example a temporary directory.

    Returns:
        The exit code: 1 if there was a problem.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="how many cases (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other cases")
    parser.add_argument("--only", type=int, help="try this one case and show its whole traceback")
    options = parser.parse_args()
    cases = range(options.count) if options.only is None else [options.only]

    def try_case(case: int) -> str:
        chosen = make(random.Random(f"{options.seed}:{case}"))
        try:
            with OperationLimit(operations) if operations is not None else nullcontext():
                return attempt(chosen)
        except named_errors as error:
            if options.only is not None:
                traceback.print_exc()
            return f"refused: {type(error).__name__}"

    counts, problems = _in_child(cases, try_case, around)
    if options.only is None:
        print(f"cases {len(cases)}, seed {options.seed}")
    for name, number in counts.most_common():
        print(f"  {number:8} {name}")
    print(f"problems {len(problems)}")
    for problem in problems[:PROBLEMS_SHOWN]:
        print("  PROBLEM", problem)
    return int(bool(problems))


def _in_child(
    cases: Iterable[int], try_case: Callable[[int], str], around: Callable[[], AbstractContextManager[object]]
) -> tuple[Counter[str], list[str]]:
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_try_all, args=(cases, try_case, around, sending))
    child.start()
    sending.close()
    counts: Counter[str] = Counter()
    problems: list[str] = []
    case, finished = None, False
    try:
        while not finished and receiving.poll(SECONDS_WITHOUT_PROGRESS):
            case, counts, new_problems, finished = receiving.recv()
            problems += new_problems
        if not finished:
            problems.append(f"case {case}: no progress for {SECONDS_WITHOUT_PROGRESS:.0f} s")
    except EOFError:
        child.join()
        problems.append(f"case {case}: the process ended with exit code {child.exitcode}")
    finally:
        child.kill()
        child.join()
    return counts, problems


def _try_all(
    cases: Iterable[int],
    try_case: Callable[[int], str],
    around: Callable[[], AbstractContextManager[object]],
    sending: Connection,
) -> None:
    counts: Counter[str] = Counter()
    memory = PeakMemory()
    with around():
        for case in cases:
            sending.send((case, counts, [], False))
            memory.start()
            problem = None
            try:
                counts[try_case(case)] += 1
            except TooManyOperationsError:
                problem = f"case {case}: too many operations"
            except Exception:  # noqa: BLE001 - every other error is a problem
                problem = f"case {case}: {traceback.format_exc()}"
            if (grown := memory.grown()) > MEMORY_ALLOWED:
                problem = f"case {case}: took {grown >> 20} MB of memory"
            if problem is not None:
                sending.send((case, counts, [problem], False))
    sending.send((None, counts, [], True))
