"""Plays orders: the worker, its attempts and their deadlines, the process around it and its link to a supervisor."""
