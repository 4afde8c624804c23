"""Starts workers, feeds them with orders, supervises them, and drains them at the end.

launch.py       a whole launch, of one or several environments
supervisor.py   keeps the workers of an environment running
feeder.py       sends the orders, paced by the trainer's progress
places.py       what a supervisor needs to know of where workers run
local.py        workers as processes of this machine; reaper.py outlives a supervisor that was killed
ray.py          workers as actors of a Ray cluster; ray_actor.py is what runs there
in_process.py   `rollout run`: worker and trainer in one process
"""
