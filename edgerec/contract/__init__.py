"""What training and the device agree on. Standard library and NumPy only (OpenCV and flatbuffers inside functions)."""
