"""Load the images and the float model that all compression methods share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerec.compress.accuracy_drop import ParityRow, parity_row
from edgerec.compress.convert import plain_names, to_float32
from edgerec.compress.finetune import FineTune, resumable_settings
from edgerec.compress.variant_report import QuantizeReport
from edgerec.compression_methods import FLOAT32, Method
from edgerec.data import Dataset, Split
from edgerec.models import IMPORTED
from edgerec.recipe import NOT_AUGMENTED, DataSource, Recipe
from edgerec.runtime.interpreter import fingerprint
from edgerec.tflite.flatbuffer import read_graph, weight_sparsity
from edgerec.tflite.metadata import with_metadata
from edgerec.train.backend import prepare, versions
from edgerec.train.distillation_loss import teacher_loss
from edgerec.train.distribute import Workers, connect_workers, run_to_write
from edgerec.train.input_pipeline import (
    Replicas,
    evaluation_batches,
    evaluation_steps,
    reporting_damaged_records,
    steps_per_epoch,
    training_batches,
)
from edgerec.train.metrics import ModelMetrics, metrics_of, require_finite
from edgerec.train.run import Run
from edgerec.train.scorers import keras_scorer, tflite_scorer
from edgerec.utils.atomic import replacing_folder, sha256
from edgerec.utils.progress import Listener
from edgerec.utils.text import to_json

# Fine-tuning uses these multiples of the original learning rate (see docs/results.md).
QAT_WITH_TEACHER_RATE = 0.01
FINE_TUNING_RATE = {"adam": 0.1, "sgd": 0.01}
RETRAINING_RATE = {"adam": 1.0, "sgd": 0.3}


@dataclass(frozen=True)
class CompressionContext:
    """The run to compress, with its images and its float Keras model.

    Attributes:
        run: the run to compress.
        recipe: the run's recipe with the options for this compression.
        dataset: the run's images.
        split: the training, validation and test images.
        model: the float Keras model. It must not be changed.
        measure: computes accuracy and agreement from outputs.
        reference: outputs of the float Keras model, float32 ``(test images, classes)``.
        val_top1: top-1 accuracy of the float Keras model on the validation images, 0 to 1.
        workers: the devices and workers used for fine-tuning.
        listener: receives the progress.
    """

    run: Run
    recipe: Recipe
    dataset: Dataset
    split: Split
    model: Any
    measure: ModelMetrics
    reference: npt.NDArray[np.float32]
    val_top1: float
    workers: Workers
    listener: Listener

    @classmethod
    @contextmanager
    def open(
        cls, run: Run, recipe: Recipe, data: DataSource | None, listener: Listener
    ) -> Iterator[CompressionContext]:
        """Load a run's images, and run its float model on the validation and test images (context manager).

        If the environment variable ``TF_CONFIG`` is set, all workers have to call this function.
        """
        prepare(replace(recipe.train, mixed_precision=False), recipe.seed)
        with run.locked(), connect_workers(recipe.train) as workers, run_to_write(run, workers) as own:
            dataset, split = own.data(data, listener)
            workers.require_equal({"data": dataset.digest} | recipe.without_source.flattened)
            model, measure = own.model(), metrics_of(own)
            score = keras_scorer(model, recipe.normalize)
            val_top1 = measure.top1(score(dataset.select(split.val), listener), dataset.classes[split.val])
            reference = score(dataset.select(split.test), listener)
            with reporting_damaged_records(dataset):
                yield cls(own, recipe, dataset, split, model, measure, reference, val_top1, workers, listener)

    def with_method(self, method: str) -> CompressionContext:
        """Return a copy of this context with a different compression method."""
        return replace(self, recipe=self.recipe.override({"compress.method": method}))

    def save(
        self,
        method: Method,
        content: bytes,
        provenance: dict[str, Any],
        *,
        float32: ParityRow | None = None,
        stages: Mapping[str, Any] | None = None,
        val_top1: float | None = None,
        overwrite: bool = False,
    ) -> QuantizeReport:
        """Add labels and normalization to the variant's metadata, evaluate the variant, and save it atomically.

        Args:
            method: compression method of the variant.
            content: the .tflite file of the variant.
            provenance: the fields ``calibration`` and ``adapted`` of the report.
            float32: the report's row for the float32 .tflite file, or None if the variant is this file.
            stages: maps stage names to the intermediate Keras models between the run's model and this variant.
            val_top1: top-1 accuracy of the variant on the validation images, 0 to 1. None measures the accuracy here.
            overwrite: replace an existing variant.
        """
        content, labels = plain_names(content), self.measure.labels
        if labels:
            content = with_metadata(content, labels, self.recipe.normalize, self.recipe.model.arch)
        if val_top1 is None:
            val_top1 = self.validate(content, method.variant)
        report = self._measure(method, content, provenance, float32, stages or {}, val_top1)
        about = report.to_dict() | {
            "compress": vars(self.recipe.compress),
            "versions": versions(),
            "measured_on": fingerprint().to_dict(),
        }
        with replacing_folder(self.run.variant(report.variant), overwrite=overwrite) as partial:
            (partial / "model.tflite").write_bytes(content)
            (partial / "report.json").write_text(to_json(about, indent=1) + "\n", encoding="utf-8")
        return report

    def validate(self, content: bytes, name: str) -> float:
        """Return a .tflite file's top-1 accuracy on the validation images, 0 to 1.

        Raises:
            ModelError: a score is NaN or infinite.
        """
        score = tflite_scorer(self.measure.model(content, self.recipe.normalize, where=name))
        part = self.split.val
        outputs = score(self.dataset.select(part), self.listener)
        require_finite(outputs)
        return self.measure.top1(outputs, self.dataset.classes[part])

    def _measure(
        self,
        method: Method,
        content: bytes,
        provenance: dict[str, Any],
        float32: ParityRow | None,
        stages: Mapping[str, Any],
        val_top1: float,
    ) -> QuantizeReport:
        dataset, split, measure, name = self.dataset, self.split, self.measure, method.variant
        score = tflite_scorer(measure.model(content, self.recipe.normalize, where=name))
        outputs = score(dataset.select(split.test), self.listener)
        classes = dataset.classes[split.test]
        row = parity_row(name, outputs, self.reference, classes, measure, content)
        rows, agreements = [parity_row("keras float32", self.reference, self.reference, classes, measure)], {}
        if float32 is not None:
            rows.append(float32)
        for stage, model in stages.items():
            stage_outputs = keras_scorer(model, self.recipe.normalize)(dataset.select(split.test), self.listener)
            rows.append(parity_row(f"keras {stage}", stage_outputs, self.reference, classes, measure))
            agreements[rows[-1].name] = measure.agreement(outputs, stage_outputs)
        return QuantizeReport(
            run=str(self.run.path),
            variant=name,
            path=str(self.run.variant(name) / "model.tflite"),
            method=self.recipe.compress.method if name != FLOAT32 else "none",
            precision=method.precision,
            forms=(*rows, row),
            val_top1=val_top1,
            val_drop_points=(self.val_top1 - val_top1) * 100,
            drop_points=(rows[0].top1 - row.top1) * 100,
            max_drop=self.recipe.compress.max_drop,
            sparsity=weight_sparsity(read_graph(content)),
            model_sha256=sha256(content),
            figures=measure.report(outputs, classes, dataset.labels),
            agreements=agreements,
            **provenance,
        )

    def float32(self) -> QuantizeReport:
        """Return the float32 TFLite variant's report, creating the variant if it does not exist."""
        report = self.run.variants().get(FLOAT32)
        if report is not None:
            return QuantizeReport.from_dict(report)
        return self.save(Method(FLOAT32, "float32"), to_float32(self.model), {}, overwrite=True)

    def fine_tune(self, checkpoints: Path) -> FineTune:
        """Return the data, schedule and settings for fine-tuning.

        Each stage saves its state in the folder ``checkpoints``.
        """
        dataset, split = self.dataset, self.split
        # Disable mixup and cutmix, because the device classifies unmixed images.
        recipe = replace(self.recipe, augment=self.recipe.augment.unmixed)
        train, compress = recipe.train, recipe.compress
        # An autoencoder is trained to reproduce its input, so it needs no teacher.
        teacher = teacher_loss([self.model]) if compress.teacher_weight and self.measure.labels else None
        rate = (
            QAT_WITH_TEACHER_RATE
            if compress.method == "qat" and teacher is not None
            else FINE_TUNING_RATE[train.optimizer]
        )

        def feed(epoch: int, replicas: Replicas) -> Any:
            # Continue the original training's epoch numbers, so that image order and augmentation are not repeated.
            return training_batches(dataset, split.train, recipe, replicas, first_epoch=train.epochs + epoch)

        return FineTune(
            feed=feed,
            plain=training_batches(dataset, split.train, replace(recipe, augment=NOT_AUGMENTED), first_epoch=0),
            steps=steps_per_epoch(split.train, recipe),
            validation=partial(evaluation_batches, dataset, split.val, recipe.normalize),
            validation_steps=evaluation_steps(split.val, self.workers.replicas),
            workers=self.workers,
            epochs=compress.epochs,
            learning_rate=compress.learning_rate or train.learning_rate * rate,
            retraining_rate=compress.learning_rate or train.learning_rate * RETRAINING_RATE[train.optimizer],
            train=train,
            freeze_bn=recipe.transfer.freeze_bn and _has_foreign_weights(recipe),
            teacher=teacher,
            teacher_weight=compress.teacher_weight,
            seed=recipe.seed,
            listener=self.listener,
            checkpoints=checkpoints,
            settings=resumable_settings(recipe),
        )


def _has_foreign_weights(recipe: Recipe) -> bool:
    """Return whether training started from pretrained weights, or the model was trained with another tool.

    In this case, the batch-normalization statistics were computed on more images than the run has.
    """
    return recipe.model.pretrained or recipe.model.arch == IMPORTED
