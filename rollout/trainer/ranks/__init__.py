"""Gives all ranks of a trainer the same number of steps: one rank reads the queue, and sends each rank its part."""
