"""The engines that we ship for machines and tests without vLLM, and the start of a vLLM server."""
