"""Starts workers, sends them orders, supervises them, and drains them at the end.

launch.py       a whole launch, of one or several environments
supervisor.py   keeps the workers of an environment running
feeder.py       sends the orders, paced by the trainer's progress
places.py       where workers run, as a supervisor sees it
local.py        workers as processes of this machine; reaper.py kills them if their supervisor was killed
ray.py          workers as actors of a Ray cluster; ray_actor.py is what runs there
in_process.py   `rollout run`: worker and trainer in one process
"""
