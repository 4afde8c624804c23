"""A disc is found: several pictures in one conversation."""
