"""HTTP server with access control and limits for the camera's web page and ``edgerec serve``."""
