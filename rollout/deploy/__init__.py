"""Writes the files from which Slurm or Kubernetes starts a run.

plan.py         plans the number of workers for each environment, the run's directory, and the memory of each process
slurm.py        writes a plan as batch scripts for Slurm
kubernetes.py   writes a plan as manifests for Kubernetes
"""
