"""Parity down to the layer: where a compressed model leaves the float one, and which layer makes it."""

from edgerec.compress.layers.diagnose import ParityReport, draw_layers, parity
from edgerec.compress.layers.measure import Layer, LayerParity, layer_parity

__all__ = ["Layer", "LayerParity", "ParityReport", "draw_layers", "layer_parity", "parity"]
