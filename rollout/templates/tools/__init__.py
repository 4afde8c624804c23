"""A question is answered with tools, several of them at once."""
