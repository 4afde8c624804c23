"""Reads a queue and hands out whole trajectories, or groups of them, each exactly once."""
