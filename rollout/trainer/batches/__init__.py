"""From trajectories to what a training step takes: samples, advantages, tensors and pixels."""
