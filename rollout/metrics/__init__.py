"""Exports metrics for Prometheus, and the health of each process of a run.

catalogue.py      defines all metrics; a test compares it with docs/metrics.md
worker.py         records the metrics of a worker
outcomes.py       exports how rollouts ended
launch.py         exports the workers of a launch
queues.py         measures how full a queue is, and for how long it has not answered
loop_monitor.py   measures whether an event loop runs
export.py         starts all of this for one process, and stops it
server.py         serves /metrics, /healthz and /readyz

`rollout.trainer.metrics` exports the metrics of the trainer's reader.
"""
