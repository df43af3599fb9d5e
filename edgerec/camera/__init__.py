"""Frames in, answers out, in real time. Never imports TensorFlow."""

from edgerec.camera.feed import Feeds
from edgerec.camera.frame import Frame, Result
from edgerec.camera.pipeline import Camera

__all__ = ["Camera", "Feeds", "Frame", "Result"]
