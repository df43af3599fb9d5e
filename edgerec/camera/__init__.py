"""The camera pipeline: read frames from sources, classify them, and pass the results to sinks. Needs no TensorFlow."""

from edgerec.camera.frame import Frame, Result
from edgerec.camera.pipeline import Camera
from edgerec.camera.supervisor import Feeds

__all__ = ["Camera", "Feeds", "Frame", "Result"]
