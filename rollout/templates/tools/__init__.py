"""The template tools: the model buys things with tools, with several calls in one answer."""
