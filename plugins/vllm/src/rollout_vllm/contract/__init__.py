"""References, descriptors and geometry, which the worker and the engine share.

The modules in this package are links to modules of `renderers_adapter`, which need only the standard library. A wheel
contains copies of them.
"""
