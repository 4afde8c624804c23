"""The engine's side of a rollout: request, answer, client."""
