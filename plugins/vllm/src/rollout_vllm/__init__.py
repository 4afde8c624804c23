"""Images by reference in vLLM's token-in, token-out endpoint.

A request names its images as `mmraw:` references instead of carrying their tensors. This server reads each image,
checks that it is the one that was named, and processes it like any other image. A request that fails a check is
answered 400 and never reaches the engine.

These modules import vLLM: `plugin`, `handler`, `processing`, `tensors`, and `discovery` through the last two. The
others hold the rules and run without it.
"""
