"""A real network behind the endpoint, by torch and transformers: for laptops, tests and small runs without a vLLM.

Importing this needs the extra `trainer`. Whatever is not needed to answer strictly and truly is left to vLLM: there is
no prefix cache, no paging, no tensor parallelism.
"""
