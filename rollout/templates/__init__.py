"""The templates of `rollout init`, one package for each. Tests run their files here as they are.

`rollout init` replaces the name of the package with the name of the new environment.
"""
