"""A number is guessed: several turns of text."""
