"""Pictures on disk become arrays: listing, pixel cache, split, augmentation."""

from edgerec.data.dataset import Dataset, Pictures, load
from edgerec.data.split import Split, recorded_split, split_dataset

__all__ = ["Dataset", "Pictures", "Split", "load", "recorded_split", "split_dataset"]
