"""The template agent: an agent program plays with tools of its own, and calls the model over HTTP."""
