"""Contains `rollout_vllm_key`, which vLLM imports from this directory."""
