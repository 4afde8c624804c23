"""The files from which a scheduler starts a run.

plan.py         how many workers of which environments, where the run's directory is, what each process needs
slurm.py        a plan as batch scripts
kubernetes.py   a plan as manifests
"""
