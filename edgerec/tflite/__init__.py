"""Read, check, edit and describe .tflite files without TensorFlow."""
