"""Parity down to the layer: where a compressed model leaves the float one, and which layer makes it.

``match`` says which operator is which, ``rewire`` makes a graph's inner tensors readable, ``probe`` and ``measure``
compare them, ``findings`` puts the result into words, ``diagnose`` does it all for a run.
"""
