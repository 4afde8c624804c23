"""Images by reference in vLLM's token-in, token-out endpoint.

A request names its images as `mmraw:` references instead of carrying their tensors. This server reads each image,
proves that it is the one that was named, and processes it as it processes its own. What it cannot prove is answered
400 and never reaches the engine.

Modules that import vLLM: `plugin`, `serving`, `processing`, `tensors`. The others hold the rules, and need only Python.
"""
