"""Plays the turns of one attempt: a session with its prompts, its trace and its images."""
