"""HTTP server with access control and limits. It serves the camera's web page and runs ``edgerec serve``."""
