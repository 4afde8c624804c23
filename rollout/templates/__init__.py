"""The templates of `rollout init`, a package for each. Tests run their files here as they are.

`rollout init` replaces the name of the package by the name of the new environment.
"""
