"""Rollouts for reinforcement learning of (multimodal) language models."""
