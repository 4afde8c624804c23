"""The template images: the model finds a disc, with several pictures in one conversation."""
