"""New weights, from a trainer to the engines."""
