"""Which rollouts there are: orders, and where their tasks come from."""
