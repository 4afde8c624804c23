"""Reads the records of a queue and returns whole trajectories, or groups of them, each exactly once."""
