"""Frames in, answers out, in real time. Never imports TensorFlow."""

from edgerec.camera.frame import Frame, Result
from edgerec.camera.pipeline import Camera
from edgerec.camera.supervisor import Feeds

__all__ = ["Camera", "Feeds", "Frame", "Result"]
