"""A run that a scheduler starts: the files that it reads.

plan.py         how many workers of which environments, where the run lies, what each process needs
slurm.py        a plan as batch scripts
kubernetes.py   a plan as manifests
"""
