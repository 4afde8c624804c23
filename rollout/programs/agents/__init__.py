"""Agents that are known: their flags, their configuration files, and the versions that were tried.

One module describes one agent. `find_agent` finds it by the name in the YAML's key `environment.agent`.
"""
