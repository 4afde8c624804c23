"""References, descriptors and geometries: the code that the worker and the engine share.

The modules in this package are links to modules of `renderers_adapter` that need only the standard library. A wheel
contains copies of these modules.
"""
