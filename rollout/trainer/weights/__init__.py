"""Saves a trainer's new weights and loads them into the engines."""
