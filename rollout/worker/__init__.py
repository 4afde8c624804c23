"""Plays orders: the worker, its attempts, their deadlines, the worker's process, and the link to its supervisor."""
