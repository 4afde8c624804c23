"""Scores a repository by its tests: prints 1.0 if all of them pass, and otherwise 0.0.

    python score_tests.py MODULE

MODULE is a module of tests in the working directory. Files there are searched last, so they hide no module of Python.
"""

import sys
import unittest


def score(module: str) -> float:
    """Run the tests of a module, and return the score."""
    sys.dont_write_bytecode = True
    sys.path.append(".")
    try:
        tests = unittest.defaultTestLoader.loadTestsFromName(module)
        result = unittest.TextTestRunner(verbosity=2).run(tests)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - an agent wrote what the tests import
        print(f"The tests cannot run: {error!r}")
        return 0.0
    return float(result.testsRun > 0 and result.wasSuccessful())


if __name__ == "__main__":
    print(score(sys.argv[1]))
