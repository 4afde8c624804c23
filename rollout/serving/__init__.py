"""Engines that we ship, for machines and tests without a vLLM."""
