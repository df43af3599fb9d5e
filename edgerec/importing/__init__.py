"""Making any Keras model fit for what comes next, without changing what it answers."""

from edgerec.importing.passes import Adapted, Change, adapt

__all__ = ["Adapted", "Change", "adapt"]
