"""Environments: the base classes for users (`base`), and the environments that we ship."""
