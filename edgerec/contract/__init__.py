"""Code shared by training and inference: bundles, preprocessing, tensors, predictions, labels and targets."""
