"""Checks the engines of a configuration: whether each serves this model, and sees what we send.

checking.py        makes all checks of each engine in order
under_test.py      an engine that is checked, and the exceptions by which a check ends without a finding
probe_requests.py  requests with new images
serving.py         the checks of the server: model, weights, endpoint, images
tokenizer.py       the check that both sides have the same tokenizer
rendering.py       the check that both sides make the same prompts of conversations, with these modules:
                   conversations.py, own_prompts.py, server_prompts.py   conversations, and the prompts of both sides
                   comparison.py, known_differences.py                   what differs, and what may differ
                   text_difference.py, renderer_advice.py                a difference as text, and settings that fit
own_engine.py      recognises our own engines, which have no tokenizer and no chat template
pixels.py          the check that the trainer sees the same pixels as the engine
forward/           the check that a forward pass of the checkpoint gives the engine's log-probs
"""
