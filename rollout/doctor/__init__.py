"""Checks a set-up before a run.

checks.py    the checks that need no engine: the file, its tasks, the tokenizer, the queue
engines.py   the checks of running engines
pixels.py    the check that the trainer sees the same pixels as the engine
results.py   the result of a check
"""
