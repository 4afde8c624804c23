"""The contract that both sides read: references, descriptors, geometry.

The modules beside this one are links to those of `renderers_adapter`, which need nothing but Python: one text, read by
the worker that writes a reference and by the engine that resolves it. A built wheel holds copies of the linked files.
"""
