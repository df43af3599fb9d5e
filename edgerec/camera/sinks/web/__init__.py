"""The camera's web page: live picture, answers and states, and buttons that save pictures for the next training."""

from edgerec.camera.sinks.web.address import parse_address
from edgerec.camera.sinks.web.sink import WebSink

__all__ = ["WebSink", "parse_address"]
