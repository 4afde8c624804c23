"""Scores a repository by its tests: prints 1.0 if all of them pass, and otherwise 0.0.

    python score_tests.py MODULE

MODULE is a module of tests in the working directory. Files there are searched last, so they hide no module of Python.

The tests run code that an agent wrote, so they run in a process of their own. It must end its output with a word that
only the two processes know. So code that prints a score, or that exits early, gains nothing. Code that searches the
memory of its process for the word could still lie; only a score that runs none of it is safe from that.
"""

import secrets
import subprocess
import sys
import unittest


def pass_tests(module: str) -> bool:
    """Run the tests of a module, and return whether all of them pass."""
    sys.dont_write_bytecode = True
    sys.path.append(".")
    try:
        tests = unittest.defaultTestLoader.loadTestsFromName(module)
        result = unittest.TextTestRunner(verbosity=2).run(tests)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - an agent wrote what the tests import
        print(f"The tests cannot run: {error!r}")
        return False
    return result.testsRun > 0 and result.wasSuccessful()


def score(module: str) -> float:
    """Run the tests in a process of their own, and return the score."""
    word = secrets.token_hex()
    command = [sys.executable, __file__, module, "--tests"]
    ended = subprocess.run(command, input=word, stdout=subprocess.PIPE, text=True, errors="replace", check=False)
    printed, _, last = ended.stdout.rstrip("\n").rpartition("\n")
    print(printed if last == word else ended.stdout)
    return float(last == word)


if __name__ == "__main__":
    if "--tests" in sys.argv:
        expected = sys.stdin.read()
        if pass_tests(sys.argv[1]):
            print(f"\n{expected}")
    else:
        print(score(sys.argv[1]))
