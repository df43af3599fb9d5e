"""An HTTP server that classifies images with a bundle."""
