"""Checks a set-up before a run.

checks.py            the checks that need no engine: the file, its tasks, the queue
model.py             the checks of the model: its files, and those of the modules below
first_request.py     begins a task, to see the images and tools of an environment
template_prompt.py   whether a chat template writes a prompt; template_tools.py: and tools
chat_template.py     whether the parsers fit a chat template, and which turns are bridged
results.py           the result of a check, and the exit code
engines/             the checks of running engines
agent/               plays the program of a configuration, and says whether it can be trained
"""
