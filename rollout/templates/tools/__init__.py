"""The template tools: the model answers a question with tools, several at once."""
