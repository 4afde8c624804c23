"""Proves a set-up before a run.

checks.py    what can be known without an engine: the file, its tasks, the tokenizer, the queue
engines.py   what only a running engine can tell
pixels.py    that the trainer sees the pixels that the engine sees
results.py   what a check says
"""
