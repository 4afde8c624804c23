"""Reads and writes the directory of a run: claims, outcomes, the configurations of a launch, and images."""
