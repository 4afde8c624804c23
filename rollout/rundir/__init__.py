"""What is in the directory of a run: claims on attempts, outcomes, the launch's configurations, images."""
