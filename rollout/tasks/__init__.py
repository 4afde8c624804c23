"""Orders for rollouts, and the sources of their tasks."""
