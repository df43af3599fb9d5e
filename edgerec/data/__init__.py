"""Load image data sets as arrays, with a pixel cache, splits, augmentation and data checks."""

from edgerec.data.dataset import Dataset, SelectedImages, load
from edgerec.data.split import Split, recorded_split, split_dataset

__all__ = ["Dataset", "SelectedImages", "Split", "load", "recorded_split", "split_dataset"]
