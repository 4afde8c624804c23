"""Runs agent programs: their processes, work directories, limits, sandboxes, and what is known of some agents."""
