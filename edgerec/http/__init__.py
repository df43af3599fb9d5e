"""HTTP servers with access control and limits, for the camera's web page and for ``edgerec serve``."""
