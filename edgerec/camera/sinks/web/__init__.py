"""The camera's web page: live picture, answers and states, and buttons that save pictures for the next training."""

from edgerec.camera.sinks.web.address import is_loopback, parse_address
from edgerec.camera.sinks.web.sink import WebSink

__all__ = ["WebSink", "is_loopback", "parse_address"]
