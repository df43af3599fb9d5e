"""Train on all GPUs of a machine, and on several machines, with ``tf.distribute``.

Each worker (process) runs the same program on a fraction of each batch. The gradients are averaged in each step, so
that all workers have the same weights. The first worker is the chief, which saves the run. TensorFlow requires that all
workers save a model together, so the other workers write to a temporary folder.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerec.errors import RecipeError, TrainError
from edgerec.recipe import TrainSection
from edgerec.train.backend import versions
from edgerec.train.input_pipeline import ONE_REPLICA, Replicas
from edgerec.train.run import Run
from edgerec.train.worker_handshake import Cluster, handshake
from edgerec.utils.native_output import captured_stderr
from edgerec.utils.optional import require

log = logging.getLogger(__name__)

# Names of the exceptions that TensorFlow raises when the connection to another worker is lost.
_LOST = ("UnavailableError", "AbortedError", "CancelledError", "InternalError", "DeadlineExceededError")


@dataclass(frozen=True)
class Workers:
    """The group of worker processes that train a model together. The default is a single worker with a single device.

    Attributes:
        strategy: TensorFlow's distribution strategy, or None for a single device.
        cluster: addresses of the workers, or None if there is only one worker.
        replicas: the replicas (devices) of this worker.
    """

    strategy: Any = None
    cluster: Cluster | None = None
    replicas: Replicas = ONE_REPLICA

    @property
    def chief(self) -> bool:
        """True if this worker is the chief, which saves the run."""
        return self.cluster is None or self.cluster.chief

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context manager for creating the model's variables."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def distribute(self, batches: Callable[[Replicas], Any]) -> Any:
        """Return a distributed data set that yields a batch for each of this worker's devices in each step.

        Args:
            batches: function that returns a ``tf.data.Dataset`` for some replicas. In each step, the dataset yields one
                batch for each replica.
        """
        if self.strategy is None:
            return batches(ONE_REPLICA)
        return self.strategy.distribute_datasets_from_function(lambda _: batches(self.replicas))

    def mean(self, value: float) -> float:
        """Return the mean of a value over all workers (all-reduce)."""
        if self.cluster is None:
            return value
        tf = require("tensorflow")
        return float(self.strategy.reduce(tf.distribute.ReduceOp.MEAN, tf.constant(value, tf.float64), axis=None))

    def merge_statistics(self, model: Any) -> None:
        """Average the batch normalization statistics over all devices.

        Each device updates its own statistics, but a checkpoint contains only the mean. This method is called after
        each checkpoint, so that uninterrupted and resumed runs continue from the same statistics.
        """
        if self.strategy is not None:
            model.set_weights(model.get_weights())

    def wait(self) -> None:
        """Wait until all workers have called this method."""
        self.mean(0.0)

    def require_equal(self, values: dict[str, Any]) -> None:
        """Raise an error in all workers if a worker's values differ from the chief's.

        Args:
            values: a JSON-serializable dictionary, such as the recipe's values.

        Raises:
            TrainError: a value differs. The message names the first such value and the worker.
        """
        if self.cluster is None:
            return
        tf = require("tensorflow")
        mine = np.frombuffer(json.dumps(values).encode(), np.uint8)
        sizes, gathered = (
            self.strategy.gather(tf.constant(array, tf.int32), axis=0).numpy() for array in ([len(mine)], mine)
        )
        chief: dict[str, Any] = {}
        for index, end in enumerate(sizes.cumsum()):
            worker = json.loads(gathered[end - sizes[index] : end].astype(np.uint8).tobytes())
            chief = chief or worker
            if different := [key for key in chief if worker.get(key) != chief[key]]:
                raise TrainError(
                    f"{self.cluster.name(index)} has {different[0]} {worker.get(different[0])!r}, but the chief has "
                    f"{chief[different[0]]!r}: give all workers the same recipe, data and run folder"
                )

    def check_batch(self, size: int, accumulate: int = 1) -> None:
        """Check that each batch can be divided equally among the devices and gradient accumulation steps.

        Raises:
            RecipeError: the batch size is not a multiple of the number of devices times ``accumulate``.
        """
        devices = self.replicas.total
        if size % (devices * accumulate):
            each = f", and each device splits its share into {accumulate} micro-batches (train.accumulate)" * (
                accumulate > 1
            )
            raise RecipeError(
                f"train.batch_size is {size}, but must be a multiple of {devices * accumulate}, because {devices} "
                f"devices share each batch{each}"
            )


SINGLE_DEVICE = Workers()


@contextlib.contextmanager
def connect_workers(section: TrainSection) -> Iterator[Workers]:
    """Context manager that connects this worker to all other workers in ``TF_CONFIG``.

    Enter the context before TensorFlow computes anything. At its end, each worker waits for the others.

    Raises:
        TrainError: a worker did not connect in time, or its connection was lost during training.
    """
    cluster = Cluster.from_environment()
    tf = require("tensorflow")
    if cluster is None:
        yield _one_machine()
        return
    strategy = _multi_worker_strategy(cluster, section.workers_wait_s)
    total = strategy.num_replicas_in_sync
    own = total // len(cluster.addresses)
    workers = Workers(strategy, cluster, Replicas(cluster.index * own, own, total))
    log.info(
        "this is %s, one of %d workers with %d devices in total",
        cluster.name(cluster.index),
        len(cluster.addresses),
        total,
    )
    try:
        yield workers
        # TensorFlow would report a worker that finishes early as a lost connection.
        workers.wait()
    except tuple(getattr(tf.errors, name) for name in _LOST) as error:
        raise TrainError(_lost_worker_message(cluster, str(error))) from None


def _one_machine() -> Workers:
    """Return a worker that uses all GPUs of this machine, or all logical CPUs if there is no GPU.

    TensorFlow has one logical CPU by default. A program can configure more of them with
    ``tf.config.set_logical_device_configuration`` to test training on several devices without GPUs.
    """
    tf = require("tensorflow")
    kind = "GPU" if tf.config.get_visible_devices("GPU") else "CPU"
    devices = [f"{kind}:{number}" for number in range(len(tf.config.list_logical_devices(kind)))]
    if len(devices) < 2:
        return SINGLE_DEVICE
    log.info("training on %d %ss", len(devices), kind)
    return Workers(_mirrored_strategy(tuple(devices)), None, Replicas(0, len(devices), len(devices)))


# A second MirroredStrategy in this process would use the same all-reduce keys as the first one.
@functools.cache
def _mirrored_strategy(devices: tuple[str, ...]) -> Any:
    return require("tensorflow").distribute.MirroredStrategy(devices)


# TensorFlow can connect to other workers only once per process.
@functools.cache
def _multi_worker_strategy(cluster: Cluster, wait_s: float) -> Any:
    log.info("waiting for %d workers", len(cluster.addresses))
    handshake(cluster, {key: versions()[key] for key in ("edgerec", "tensorflow")}, wait_s)
    try:
        with captured_stderr():
            return require("tensorflow").distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise TrainError(
            f"Cannot connect the workers in TF_CONFIG, because this process has already used TensorFlow ({error}): "
            "call fit or quantize before any TensorFlow function"
        ) from None


def _lost_worker_message(cluster: Cluster, tensorflow_message: str) -> str:
    tasks = re.findall(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)", tensorflow_message)
    lost = {cluster.position(job, int(task)) for job, task in tasks} - {cluster.index}
    worker = cluster.name(min(lost)) if lost and max(lost) < len(cluster.addresses) else "another worker"
    return (
        f"The connection to {worker} was lost: start the command again on all workers to continue (edgerec train and "
        "quantize require --resume)"
    )


@contextlib.contextmanager
def run_to_write(run: Run, workers: Workers) -> Iterator[Run]:
    """Context manager that provides the run folder this worker writes to.

    The chief writes to ``run``, and the other workers write to temporary copies, which are deleted at the end.
    """
    if workers.chief:
        workers.wait()
        yield run
        return
    scratch = Path(tempfile.mkdtemp(prefix="edgerec-worker-"))
    try:
        own = scratch / run.path.name
        if run.begun:
            shutil.copytree(run.path, own, ignore=shutil.ignore_patterns("plots", "tensorboard"))
        # The chief must not change the run before this worker has copied it.
        workers.wait()
        yield Run(own)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
