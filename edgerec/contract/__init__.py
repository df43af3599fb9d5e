"""What training and the device agree on. Standard library and NumPy only (OpenCV inside two functions)."""
