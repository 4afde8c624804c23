"""Serves the policy to agent programs over HTTP, in three dialects: chat completions, Responses and Messages."""
