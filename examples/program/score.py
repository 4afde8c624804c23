"""Scores what the agent left in its work directory: it prints 1 if answer.txt ends with the right number, else 0."""

import re
import sys
from pathlib import Path

answer = Path("answer.txt").read_text()
print(int(re.findall(r"-?\d+", answer)[-1:] == [sys.argv[1]]))
