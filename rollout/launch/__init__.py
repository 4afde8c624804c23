"""Starts workers, sends them orders, supervises them, and drains them at the end.

launch.py       a whole launch, of one or several environments
supervisor.py   keeps the workers of an environment running
feeder.py       sends the orders, no faster than the trainer can use the rollouts
places.py       the contract of the places where workers run
local.py        workers as processes of this machine
ray.py          workers as actors of a Ray cluster; an actor runs ray_actor.py
in_process.py   `rollout run`: worker and trainer in one process
"""
