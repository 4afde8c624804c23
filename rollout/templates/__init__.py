"""What `rollout init` writes: a directory for each template, whose files run here as they do where they are written.

In what is written, the name of the new environment replaces the name of the template's package.
"""
