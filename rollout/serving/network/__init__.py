"""A real network behind the endpoint, by torch and transformers: for laptops, tests and small runs without a vLLM.

Importing this needs the extra `trainer`. It has only what correct answers need. The rest is left to vLLM: there is no
prefix cache, no paging, no tensor parallelism.
"""
