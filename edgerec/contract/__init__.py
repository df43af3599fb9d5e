"""Code that training and devices share: bundles, preprocessing, tensors, predictions, labels and targets."""
