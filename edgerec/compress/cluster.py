"""Weight clustering with fine-tuning (arXiv:1510.00149, section 3), using tensorflow-model-optimization."""

from __future__ import annotations

from typing import Any

from edgerec.compress.finetune import FineTune, fine_tune
from edgerec.compress.layer_wrappers import wrap
from edgerec.recipe import CompressSection
from edgerec.utils.optional import require


def cluster(model: Any, section: CompressSection, tune: FineTune, *, preserve_sparsity: bool) -> Any:
    """Cluster each layer's weights into at most ``section.clusters`` distinct values, and fine-tune the model.

    Args:
        model: a float model; it may be pruned.
        section: the recipe section with ``clusters`` and ``skip``.
        tune: data and schedule.
        preserve_sparsity: keep zero weights at zero, which takes up one cluster.
    """
    clustering = require("tensorflow_model_optimization").clustering.keras
    # Import the experimental clustering module, because the public function lacks the argument ``preserve_sparsity``.
    from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster as experimental

    options = {
        "number_of_clusters": max(section.clusters, 3 if preserve_sparsity else 2),
        "cluster_centroids_init": clustering.CentroidInitialization.KMEANS_PLUS_PLUS,
        "preserve_sparsity": preserve_sparsity,
    }

    def wrapped() -> Any:
        return wrap(model, lambda layer: experimental.cluster_weights(layer, **options), section.skip)

    return clustering.strip_clustering(fine_tune(wrapped, tune, "clustering"))
