"""A web page that shows the live image, the predictions and the source states, and can save labeled images."""

from edgerec.camera.sinks.web.sink import WebSink

__all__ = ["WebSink"]
