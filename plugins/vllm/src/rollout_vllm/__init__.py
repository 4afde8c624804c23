"""Image references in vLLM's token-in, token-out endpoint.

A request names its images by `mmraw:` references instead of sending their tensors. The server reads each image, checks
its hash, and processes it like any other image. A request that fails a check is answered 400 and does not reach the
engine.

Only `plugin`, `handler`, `processing`, `tensors` and `discovery` import vLLM; the other modules run without it.
"""
