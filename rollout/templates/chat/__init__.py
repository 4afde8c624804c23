"""The template chat: the model guesses a number in several turns of text."""
