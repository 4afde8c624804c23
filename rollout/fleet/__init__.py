"""A run on more than one machine: what a scheduler is told, and workers that somebody else starts.

plan.py         how many workers of which environments, where the run lies, what each process needs
slurm.py        a plan as batch scripts
kubernetes.py   a plan as manifests
ray_place.py    a Ray cluster as a place for workers, and ray_actor.py, what runs there
"""
