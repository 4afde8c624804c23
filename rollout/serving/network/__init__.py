"""An engine with a real network, in torch and transformers, for laptops, tests and small runs without vLLM.

Its modules need the extra `trainer`. The engine is simple: it has no prefix cache, no paging and no tensor parallelism.
"""
