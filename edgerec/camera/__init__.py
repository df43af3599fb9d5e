"""The camera pipeline: read frames from sources, classify them and pass the results to sinks, without TensorFlow."""

from edgerec.camera.frame import Frame, Result
from edgerec.camera.pipeline import Camera
from edgerec.camera.supervisor import SourceSupervisor

__all__ = ["Camera", "Frame", "Result", "SourceSupervisor"]
