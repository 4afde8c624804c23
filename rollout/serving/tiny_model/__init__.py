"""Tiny checkpoints with random weights: a real network for tests, without a download.

    python -m rollout.serving.tiny_model DIRECTORY --family qwen3-vl

They have the architecture, tokens, chat template and processor configuration of their families, and about half a
million parameters. Greedy answers depend on the prompt and its images. To make one, you need torch and transformers
(`pip install 'rollout-rl[trainer]'`).
"""
