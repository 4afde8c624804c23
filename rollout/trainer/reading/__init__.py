"""From the queue to whole trajectories, each exactly once, and to groups of them."""
