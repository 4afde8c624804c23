"""Environments: what a user writes (`base`), and the ones we ship."""
