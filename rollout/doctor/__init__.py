"""Checks a set-up before a run.

checks.py    the checks that need no engine: the file, its tasks, the queue
model.py     the check of the model's files
results.py   the result of a check, and the exit code
engines/     the checks of running engines
agent/       plays the program of a configuration, and says whether it can be trained
"""
