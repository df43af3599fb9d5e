"""Compare a compressed model with the float model layer by layer, and find the layers that lose accuracy.

``graph_matching`` pairs the operators of both models, ``extra_outputs`` rewrites graphs so that intermediate tensors
can be read, ``instrumentation`` and ``runner`` measure the noise of each layer, ``findings`` explains the result, and
``diagnose`` does all of this for a run.
"""
