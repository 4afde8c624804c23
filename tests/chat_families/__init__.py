"""Tiny checkpoints of families that have no renderer of their own, with the layout of their chat templates.

Nothing is downloaded or copied: the templates are ours, and control tokens and layouts are those of the families.
"""
