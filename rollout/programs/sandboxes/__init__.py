"""Sandboxes: where a program runs, and what it can reach there.

`none` is no sandbox, `bwrap` is bubblewrap, and `docker` is a container. Other distributions add sandboxes with the
entry-point group `rollout.sandboxes`; the name of an entry point is the value of `sandbox.kind` in the YAML.
"""
