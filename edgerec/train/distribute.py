"""Training on all GPUs of a machine, and on several machines (tf.distribute).

Every worker runs the same program on its part of each batch, and gradients are averaged at each step, so that all have
the same weights. TensorFlow saves a model only if all workers do: those that are not the chief write into a folder that
is removed at the end.
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

# How TensorFlow says that a worker does not answer.
_LOST = ("UnavailableError", "AbortedError", "CancelledError", "InternalError", "DeadlineExceededError")


@dataclass(frozen=True)
class Team:
    """The devices and processes that train one model; in most trainings one.

    Attributes:
        strategy: TensorFlow's; None where one device trains.
        cluster: where other processes take part.
        replicas: what of each batch this process computes.
    """

    strategy: Any = None
    cluster: Cluster | None = None
    replicas: Replicas = ONE_REPLICA

    @property
    def chief(self) -> bool:
        """Whether this process writes what is made."""
        return self.cluster is None or self.cluster.chief

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where the variables of a model are made that the team trains."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def distribute(self, feed: Callable[[Replicas], Any]) -> Any:
        """The batches for Keras, of a function that gives those of some replicas, one place's after the other."""
        if self.strategy is None:
            return feed(ONE_REPLICA)
        return self.strategy.distribute_datasets_from_function(lambda _: feed(self.replicas))

    def mean(self, value: float) -> float:
        """The mean of all workers' values: the same number for all of them."""
        if self.cluster is None:
            return value
        tf = require("tensorflow")
        return float(self.strategy.reduce(tf.distribute.ReduceOp.MEAN, tf.constant(value, tf.float64), axis=None))

    def merge_statistics(self, model: Any) -> None:
        """Set the batch normalization statistics of each device to the mean over all devices.

        Each device updates its own statistics, but a checkpoint contains only the mean. This method is called after
        each checkpoint, so that uninterrupted and resumed trainings continue from the same statistics.
        """
        if self.strategy is not None:
            model.set_weights(model.get_weights())

    def wait(self) -> None:
        """Return when all workers are here."""
        self.mean(0.0)

    def require_equal(self, facts: dict[str, Any]) -> None:
        """Refuse to train where a worker has other facts than the chief.

        Args:
            facts: JSON values, nested dictionaries or not; each should be the same for all.

        Raises:
            TrainError: the first that is not, and whose it is; in all workers.
        """
        if self.cluster is None:
            return
        tf = require("tensorflow")
        mine = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        sizes, everything = (
            self.strategy.gather(tf.constant(values, tf.int32), axis=0).numpy() for values in ([len(mine)], mine)
        )
        chief: dict[str, Any] = {}
        for index, end in enumerate(sizes.cumsum()):
            found = _flattened(json.loads(everything[end - sizes[index] : end].astype(np.uint8).tobytes()))
            chief = chief or found
            if other := [key for key in chief if found.get(key) != chief[key]]:
                raise TrainError(
                    f"{self.cluster.name(index)} has {other[0]} {found.get(other[0])!r}, the chief "
                    f"{chief[other[0]]!r}: give all workers the same recipe, data and run folder"
                )

    def check_batch(self, size: int, accumulate: int = 1) -> None:
        """Check that a batch can be divided equally among the devices and their gradient-accumulation steps.

        Raises:
            RecipeError: the batch size is not a multiple of the number of devices times ``accumulate``.
        """
        devices = self.replicas.total
        if size % (devices * accumulate):
            each = f", each of which computes its share in {accumulate} steps (train.accumulate)" * (accumulate > 1)
            raise RecipeError(
                f"train.batch_size is {size}, expected a multiple of {devices * accumulate}: {devices} devices share "
                f"a batch{each}"
            )


ALONE = Team()


@contextlib.contextmanager
def connected_team(section: TrainSection) -> Iterator[Team]:
    """The team that trains: all workers of ``TF_CONFIG``, with all GPUs of each.

    It must be asked before TensorFlow computes anything. Where there are other workers, the block is left by all of
    them at the same time.

    Raises:
        TrainError: a worker does not come, or is gone during the training.
    """
    cluster = Cluster.from_environment()
    tf = require("tensorflow")
    if cluster is None:
        yield _one_machine()
        return
    strategy = _connected(cluster, section.workers_wait_s)
    total = strategy.num_replicas_in_sync
    own = total // len(cluster.addresses)
    team = Team(strategy, cluster, Replicas(cluster.index * own, own, total))
    log.info("%s of %d workers, %d devices in all", cluster.name(cluster.index), len(cluster.addresses), total)
    try:
        yield team
        team.wait()  # TensorFlow takes one who leaves for one who was lost
    except tuple(getattr(tf.errors, name) for name in _LOST) as error:
        raise TrainError(_lost(cluster, str(error))) from None


def _one_machine() -> Team:
    """Return the team of all GPUs, or of all logical CPUs if there is no GPU.

    TensorFlow has one logical CPU by default. A program can configure more of them with
    ``tf.config.set_logical_device_configuration`` to test training on several devices without GPUs.
    """
    tf = require("tensorflow")
    kind = "GPU" if tf.config.get_visible_devices("GPU") else "CPU"
    devices = [f"{kind}:{number}" for number in range(len(tf.config.list_logical_devices(kind)))]
    if len(devices) < 2:
        return ALONE
    log.info("training on %d %ss", len(devices), kind)
    return Team(_mirrored(tuple(devices)), None, Replicas(0, len(devices), len(devices)))


@functools.cache  # a second strategy would reuse the collective keys of the first one for tensors of other shapes
def _mirrored(devices: tuple[str, ...]) -> Any:
    return require("tensorflow").distribute.MirroredStrategy(devices)


@functools.cache  # TensorFlow connects a process once
def _connected(cluster: Cluster, wait_s: float) -> Any:
    log.info("waiting for %d workers", len(cluster.addresses))
    handshake(cluster, {key: versions()[key] for key in ("edgerec", "tensorflow")}, wait_s)
    try:
        with captured_stderr():
            return require("tensorflow").distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise TrainError(
            f"TensorFlow was used before the workers of TF_CONFIG met ({error}): begin with fit or quantize of a run"
        ) from None


def _lost(cluster: Cluster, said: str) -> str:
    """What to do when TensorFlow says that a worker does not answer."""
    tasks = re.findall(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)", said)
    gone = {cluster.position(job, int(task)) for job, task in tasks} - {cluster.index}
    who = cluster.name(min(gone)) if gone and max(gone) < len(cluster.addresses) else "another worker"
    return f"{who} is gone: start all workers again with --resume; they go on after the last checkpoint"


@contextlib.contextmanager
def run_to_write(run: Run, team: Team) -> Iterator[Run]:
    """The run, or for a worker that is not the chief a copy of it, which is gone after the block."""
    if team.chief:
        team.wait()
        yield run
        return
    scratch = Path(tempfile.mkdtemp(prefix="edgerec-worker-"))
    try:
        own = scratch / run.path.name
        if run.begun:
            shutil.copytree(run.path, own, ignore=shutil.ignore_patterns("plots", "tensorboard"))
        team.wait()  # the chief changes nothing before
        yield Run(own)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _flattened(facts: dict[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in facts.items():
        found |= _flattened(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return found
