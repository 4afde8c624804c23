"""Makes the orders for rollouts, and reads the sources of their tasks."""
