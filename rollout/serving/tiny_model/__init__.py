"""Makes tiny checkpoints with random weights, so that tests have a real network without a download.

    python -m rollout.serving.tiny_model DIRECTORY --family qwen3-vl

They have the architecture, tokens, chat template and processor configuration of their families, and about half a
million parameters. Greedy answers depend on the prompt and its images. To make a checkpoint, you need torch and
transformers (`pip install 'rollout-rl[trainer]'`).
"""
