"""Read and write a training run's folder."""

from __future__ import annotations

import csv
import io
import json
import logging
import zipfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgerec.contract.tensors import parse_normalize
from edgerec.data import Dataset, Split, load, recorded_split
from edgerec.errors import DataError, EdgerecError, RunError
from edgerec.importing import saved_model
from edgerec.importing.keras_files import load_model
from edgerec.models import IMPORTED, least_size_px, reconstructs
from edgerec.recipe import DataSection, DataSource, Recipe
from edgerec.train.run_files import (
    HISTORY,
    MAX_FILE_BYTES,
    ComparisonRecord,
    ExportRecord,
    ExportRecords,
    ExtensionRecord,
    ImportedModel,
    RunMetrics,
    SplitRecord,
    VariantRecord,
    parse_history,
    parse_labels,
    parse_object,
)
from edgerec.train.worker_handshake import Cluster
from edgerec.utils.atomic import read_at_most, real_path, replacing, user_path, write_file
from edgerec.utils.command_line import command
from edgerec.utils.lock import Lock
from edgerec.utils.progress import Listener, ignore
from edgerec.utils.text import to_json

T = TypeVar("T")
log = logging.getLogger(__name__)


# File in the model.keras archive that lists the training images, used to detect data leakage.
TRAINED_IMAGES = "edgerec_trained_images.json"
# File with a run's model in Keras 3 format.
KERAS3 = "model_keras3.keras"
# File that records the exported variants and their targets.
EXPORTS = "exports.json"
# File that lists the numbers of epochs after which a run was extended.
EXTENSIONS = "extensions.json"
# File with an imported model's predictions for its training images, if the images have no labels.
PSEUDO_LABELS = "pseudo_labels.json"
# Warning for metrics measured with pseudo-labels.
AGREEMENT = "the images have no labels: all accuracies measure agreement with the predictions of the float model"


@dataclass(frozen=True)
class Run:
    """A training run's output folder.

    The folder contains ``recipe.toml``, ``model.keras``, ``model_keras3.keras`` (the same model for Keras 3),
    ``labels.txt``, ``split.json``, ``history.csv``, ``metrics.json``, ``plots/``, ``checkpoints/``, and one folder for
    each variant. The run of an imported SavedModel has ``saved_model/`` instead of ``model.keras``. If a model was
    imported with unlabeled images, its run has ``pseudo_labels.json`` with the model's predictions. If epochs were
    added to the run, it has ``extensions.json``.

    ``metrics.json`` is written last. A run is finished when it has this file.
    """

    path: Path

    @classmethod
    def at(cls, path: str | Path) -> Run:
        """Return the run in the folder ``path``, which may not exist yet.

        The paths ``.`` and ``..`` are replaced with absolute paths, because a bundle is named after the run's folder.
        """
        return cls(real_path(path) if str(path) in (".", "..") else user_path(path))

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Return the finished run in the folder ``path``, or raise :class:`EdgerecError` if there is none."""
        run = cls.at(path)
        if not run.begun:
            raise EdgerecError(f"{path} is not a run: create one with {command('train', 'DATA', '--out', path)}")
        if not run.finished:
            raise EdgerecError(f"{path} is unfinished: resume it with {command('train', '--resume', '--out', path)}")
        return run

    @classmethod
    def open_classifier(cls, path: str | Path) -> Run:
        """Load a finished run. Raise :class:`RunError` if its model is an autoencoder, not a classifier."""
        run = cls.open(path)
        if run.reconstructs:
            raise RunError(
                f"{path} is an autoencoder run and predicts no labels: choose a classifier run. To add "
                f"novelty detection to a classifier, use {command('export', 'CLASSIFIER_RUN', '--novelty', path)}"
            )
        return run

    def locked(self) -> AbstractContextManager[object]:
        """Return a context manager that prevents other processes from writing to this run.

        Workers in a distributed training run do not lock each other out, because only the chief writes to the run.

        Raises:
            InUseError: another process is writing to this run.
        """
        cluster = Cluster.from_environment()
        return Lock(self.path) if cluster is None or cluster.chief else nullcontext()

    @property
    def begun(self) -> bool:
        """True if training has been started in this folder."""
        return (self.path / "recipe.toml").is_file() and (self.path / "split.json").is_file()

    @property
    def finished(self) -> bool:
        """True if training is complete and the model has been evaluated."""
        return (self.path / "metrics.json").is_file()

    @property
    def recipe(self) -> Recipe:
        """The recipe with all automatic values resolved."""
        recipe = Recipe.from_toml(self.path / "recipe.toml")
        if keys := recipe.unresolved:
            raise RunError(
                f"{self.path}: recipe.toml is damaged (it has no value for {keys[0]}): train again with --overwrite"
            )
        return recipe

    @property
    def labels(self) -> tuple[str, ...]:
        """The class labels, in the order of the model's scores."""
        labels: tuple[str, ...] = self._read("labels.txt", parse_labels)
        if self.finished and self.metrics.get("labels", list(labels)) != list(labels):
            raise RunError(
                f"{self.path}: labels.txt is damaged (its labels differ from those in metrics.json): restore this file"
            )
        return labels

    @property
    def metrics(self) -> RunMetrics:
        """The content of ``metrics.json``."""
        required = ("error", "threshold") if self.reconstructs else ("accuracy", "val_accuracy")
        metrics = self._read("metrics.json", parse_object(RunMetrics, required))
        if metrics["images"] < 1:
            raise RunError(f"{self.path}: metrics.json is damaged (images must be at least 1): restore this file")
        return metrics

    @property
    def adopted(self) -> ImportedModel | None:
        """Origin of a model trained with another tool, or None if edgerec trained the model."""
        return self.metrics.get("adopted")

    @property
    def reconstructs(self) -> bool:
        """True if this run's model is an autoencoder."""
        return reconstructs(self.recipe.model.arch)

    @property
    def split_record(self) -> SplitRecord:
        """The content of ``split.json``; see :func:`split_record`."""
        return self._read("split.json", parse_object(SplitRecord))

    @property
    def extensions(self) -> list[int]:
        """Numbers of epochs after which the run was extended, in increasing order."""
        if not (self.path / EXTENSIONS).is_file():
            return []
        return self._read(EXTENSIONS, parse_object(ExtensionRecord))["after_epochs"]

    def model(self) -> Any:
        """Return the uncompiled float32 Keras model, or the imported :class:`saved_model.SavedModel`.

        Raises:
            ModelError: the model cannot be loaded.
            RunError: the model's input or output shape does not match the run's recipe or labels.
        """
        if (self.path / saved_model.FOLDER).is_dir():
            model = saved_model.load_saved_model(self.path / saved_model.FOLDER)
            if layer := self.metrics.get("adopted", {}).get("input_layer"):
                model.normalize(parse_normalize(layer))
            return model
        model, data = load_model(self.path / "model.keras"), self.recipe.data
        image = (None, data.input_size, data.input_size, data.channels)
        expected = (image, image if self.reconstructs else (None, len(self.labels)))
        shapes = (model.input_shape, model.output_shape)
        if shapes != expected:
            raise RunError(
                f"{self.path}/model.keras is not this run's model: its input and output shapes are {shapes}, "
                f"expected {expected}. Restore the original file"
            )
        return model

    def data(self, source: DataSource | None = None, listener: Listener = ignore) -> tuple[Dataset, Split]:
        """Load and return the data set the model was trained on, and its split.

        Args:
            source: current location of the images, if they were moved. Merged folders must keep their names.
            listener: receives the progress.

        Raises:
            DataError: the images differ from those the run was trained on.
        """
        dataset, section = self.load_images(source, listener)
        if dataset.digest != self.split_record["digest"]:
            names = "" if len(section.sources) == 1 else ", under the same folder names,"
            raise DataError(
                f"{section.title} has changed since the model in {self.path} was trained (its digest differs): "
                f"restore the original images{names}, select them with --data, or train again"
            )
        pseudo_labels = self.pseudo_labels()
        if pseudo_labels is not None:
            log.warning(AGREEMENT)
        split = recorded_split(dataset, self.split_record)
        return dataset if self.reconstructs else dataset.relabeled(self.labels, pseudo_labels), split

    def load_images(self, source: DataSource | None = None, listener: Listener = ignore) -> tuple[Dataset, DataSection]:
        """Load images with the run's settings, by default from the location in its recipe.

        The images may differ from those the run was trained on. The network is not loaded, because workers cannot
        connect after TensorFlow has loaded a model.
        """
        recipe = self.recipe if source is None else self.recipe.override({"data.source": source}, "--data")
        return load(
            recipe.data,
            least_size_px=least_size_px(recipe.model.arch),
            flat=self.reconstructs or self.pseudo_labels() is not None,
            least_classes=1 if self.reconstructs else 2,
            listener=listener,
        )

    def pseudo_labels(self) -> dict[str, str] | None:
        """Return a dictionary that maps image names to the labels predicted by an imported model.

        These labels replace missing labels, so that variants can be compared with the imported model. If the images
        have labels, the result is None.
        """
        return (
            self._read(PSEUDO_LABELS, parse_object(dict[str, str])) if (self.path / PSEUDO_LABELS).is_file() else None
        )

    def variant(self, name: str) -> Path:
        """Return a variant's folder, which may not exist yet."""
        return self.path / name

    def variants(self) -> dict[str, VariantRecord]:
        """Return a dictionary that maps the name of each finished variant to its report."""
        names = [report.parent.name for report in sorted(self.path.glob("[!.]*/report.json"))]
        return {
            name: self._read(f"{name}/report.json", parse_object(VariantRecord))
            for name in names
            if (self.path / name / "model.tflite").is_file()
        }

    def comparison(self) -> ComparisonRecord | None:
        """Return the latest results of :func:`edgerec.compress.compare.compare`, or None if there are no results."""
        return (
            self._read("compare.json", parse_object(ComparisonRecord))
            if (self.path / "compare.json").is_file()
            else None
        )

    def exports(self, variants: Mapping[str, VariantRecord] | None = None) -> list[ExportRecord]:
        """Return the recorded exports, oldest first, excluding those whose variant has changed since the export.

        Args:
            variants: result of :meth:`variants`, or None to call this method.

        Returns:
            Rows with ``variant``, ``target``, ``bundle`` and ``model_sha256``.
        """
        if not (self.path / EXPORTS).is_file():
            return []
        rows = self._read(EXPORTS, parse_object(ExportRecords))["exports"]
        digests = {name: about["model_sha256"] for name, about in (variants or self.variants()).items()}
        return [row for row in rows if digests.get(row["variant"]) == row["model_sha256"] and row["target"]]

    def record_export(self, variant: str, model_sha256: str, target: str, bundle: str) -> None:
        """Record a variant's export in the run. Log a warning if the run is not writable."""
        try:
            rows = [row for row in self.exports() if row["bundle"] != bundle]
            row = {"variant": variant, "target": target, "bundle": bundle, "model_sha256": model_sha256}
            self.write_json(EXPORTS, {"exports": [*rows, row]})
        except (EdgerecError, OSError) as error:
            log.warning("cannot record the export in the run %s: %s", self.path, error)

    def shipped(self, variants: Mapping[str, VariantRecord] | None = None) -> str | None:
        """Return the name of the most recently exported variant.

        If no variant was exported, return the best int8 variant, or None if there is none.
        """
        variants = self.variants() if variants is None else variants
        exports = self.exports(variants) if variants else []
        return exports[-1]["variant"] if exports else best_int8(variants)

    def history(self) -> list[dict[str, float]]:
        """Read ``history.csv``, and return one row per epoch with the keys in :data:`HISTORY`."""
        if not (self.path / "history.csv").exists():
            return []
        rows: list[dict[str, float]] = self._read("history.csv", parse_history)
        if any("val_accuracy" not in row for row in rows) and not self.reconstructs:
            raise RunError(
                f"{self.path}: history.csv is damaged (the column val_accuracy is missing): restore this file"
            )
        return rows

    def write_history(self, rows: list[dict[str, float]]) -> None:
        """Write ``history.csv``."""
        out, keys = io.StringIO(), [key for key in HISTORY if not rows or any(key in row for row in rows)]
        writer = csv.DictWriter(out, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{row[key]:.6g}" for key in keys if key in row} for row in rows)
        write_file(self.path / "history.csv", out.getvalue())

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file in the run's folder."""
        write_file(self.path / name, to_json(value, indent=1) + "\n")

    def _read(self, name: str, parse: Callable[[str], T]) -> T:
        try:
            return parse(read_at_most(self.path / name, MAX_FILE_BYTES).decode())
        except FileNotFoundError:
            raise RunError(f"{self.path}: {name} is missing: train again with --overwrite") from None
        except OSError as error:
            raise RunError(f"{self.path}: {name} cannot be read ({error.strerror}): check its permissions") from None
        except (ValueError, KeyError, TypeError, OverflowError, csv.Error) as error:
            raise RunError(
                f"{self.path}: {name} is damaged ({error}): restore this file, or create it again with --overwrite"
            ) from None

    def save_model(self, model: Any, name: str) -> None:
        """Save a Keras model atomically, including the digests of its training images."""
        with replacing(self.path / name) as partial:
            model.save(partial, save_format="keras")
            contents = self.split_record.get("contents")
            if contents and self.recipe.model.arch != IMPORTED:
                data, seed = self.recipe.data, self.recipe.seed
                hint = {name: getattr(data, name) for name in ("test_fraction", "val_fraction", "group_by")}
                trained = {name: contents[name] for name in ("of", "train", "val", "inherited")}
                with zipfile.ZipFile(partial, "a", zipfile.ZIP_DEFLATED) as archive:
                    archive.writestr(TRAINED_IMAGES, json.dumps({"contents": trained, "data": hint, "seed": seed}))


def best_epoch(history: list[dict[str, float]]) -> int:
    """Return the number of the epoch with the highest validation accuracy, counted from 1.

    If several epochs have the same accuracy, or if the model is an autoencoder, the epoch with the lowest validation
    loss is returned.
    """
    return int(max(history, key=lambda row: (row.get("val_accuracy", 0.0), -row["val_loss"]))["epoch"])


def format_metrics(row: Mapping[str, float]) -> str:
    """Format the metrics of an epoch or a step, such as ``loss 0.1234  accuracy 0.9500``."""
    keys = ("loss", "accuracy", "val_loss", "val_accuracy")
    return "  ".join(f"{key} {row[key]:.4f}" for key in keys if key in row)


def best_int8(variants: Mapping[str, VariantRecord]) -> str | None:
    """Return the name of the int8 variant with the highest validation accuracy, or None if there is no int8 variant."""
    top1 = {name: report["val_top1"] for name, report in variants.items() if report["precision"] == "int8"}
    return max(top1, key=lambda name: top1[name]) if top1 else None
