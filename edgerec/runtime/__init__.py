"""The half that runs on a device: interpreter, classifier, verification. Never imports TensorFlow."""

from edgerec.runtime.classifier import Classifier
from edgerec.runtime.golden import verify

__all__ = ["Classifier", "verify"]
