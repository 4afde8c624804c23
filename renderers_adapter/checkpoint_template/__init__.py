"""The renderer `template`: it renders, bridges and parses with the chat template of the checkpoint."""
