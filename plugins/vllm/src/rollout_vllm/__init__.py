"""A vLLM plugin that resolves image references in requests to the token-in, token-out endpoint.

A request names its images by `mmraw:` references instead of sending tensors. The server reads each image, checks its
hash, and processes it as usual. If a check fails, the server answers with status 400, and the request does not reach
the engine.

Only `plugin`, `handler`, `processing`, `tensors` and `discovery` import vLLM; the other modules run without it.
"""
