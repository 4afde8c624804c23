"""An engine with a real network, by torch and transformers: for laptops, tests and small runs without vLLM.

Importing its modules needs the extra `trainer`. It has only what correct answers need: no prefix cache, no paging, no
tensor parallelism.
"""
