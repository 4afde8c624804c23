"""Checks that the checkpoint gives the engine's log-probs: `rollout doctor CONFIG --forward`.

checking.py       makes the check: plays, measures and judges
conversation.py   plays a conversation with two images, and reads its record as a trainer does
precision.py      the precision in which the engine computes, and the differences that it explains
network.py        the checkpoint as transformers loads it, and its log-probs
measuring.py      measures how far the log-probs of engine and checkpoint differ
normalisation.py  the normalisation of pixels in a checkpoint, and in others
verdict.py        says what the differences prove, or what is wrong

Only this package of the doctor imports the trainer's side, because its check is that of a whole loop.
"""
