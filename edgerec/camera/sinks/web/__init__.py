"""A web page with the live image, predictions and source states, where users can label and save images."""

from edgerec.camera.sinks.web.sink import WebSink

__all__ = ["WebSink"]
