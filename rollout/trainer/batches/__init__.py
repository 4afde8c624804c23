"""Turns trajectories into the input of a training step: samples, advantages, tensors and pixels."""
