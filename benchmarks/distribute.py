"""Measure how training scales over one, two and four processes with one thread each on this machine.

    python benchmarks/distribute.py [--rounds 3] [--workers 1 2 4]

The processes share a batch of 256 random images (ResNet8, 32×32). The expected time of a step is
``apart(n) + exchange(n)``. ``apart(n)`` is the time that n independent processes need for their parts at the same time,
which is the limit of the machine. ``exchange(n)`` is the time to sum the gradients. Both are measured separately. The
results are medians of the rounds, and only the ratios are meaningful.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from statistics import median
from typing import Any

BATCH, STEPS, SHAPE = 256, 10, (32, 32, 3)


def addresses(count: int) -> list[str]:
    """Return free ports of this machine."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{opened.getsockname()[1]}" for opened in sockets]


def workers(count: int, together: bool = True) -> dict[str, float]:
    """Start processes, and return the result of the first; if not ``together``, each trains a separate model."""
    workers = addresses(count)
    processes = []
    for index in range(count):
        config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        environment |= {"TF_CONFIG": json.dumps(config)} if together else {}
        command = [sys.executable, __file__, "--worker", "--batch", str(BATCH if together else BATCH // count)]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    return json.loads(outputs[0].splitlines()[-1])


def worker(batch: int) -> None:
    """Train, and print the seconds per step and per gradient exchange."""
    import numpy as np

    from edgerec.train.backend import keras, prepare
    from edgerec.train.training_step import compile_classifier

    keras()  # configures TensorFlow, so it must run before TensorFlow is imported
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    from edgerec import Recipe
    from edgerec.models import build
    from edgerec.train.distribute import connect_workers
    from edgerec.train.input_pipeline import Replicas

    recipe = Recipe().override({"model.arch": "resnet8", "data.input_size": SHAPE[0], "data.channels": SHAPE[2]})
    prepare(recipe.train, 0)
    with connect_workers(recipe.train) as workers:
        rng = np.random.default_rng(0)

        def feed(replicas: Replicas) -> Any:
            size = batch // replicas.total
            pixels = rng.random((size, *SHAPE), np.float32)
            return tf.data.Dataset.from_tensors((pixels, np.arange(size) % 10)).cache().repeat()

        with workers.scope():
            model = build(keras(), recipe.model, SHAPE, 10, recipe.normalize)
            compile_classifier(model, keras().optimizers.SGD(0.01), STEPS)
        model.fit(workers.distribute(feed), steps_per_epoch=STEPS, verbose=0)
        steps = []
        for _ in range(3):
            start = time.monotonic()
            model.fit(workers.distribute(feed), steps_per_epoch=STEPS, verbose=0)
            steps.append((time.monotonic() - start) / STEPS)
        gradients = [tf.zeros_like(variable) for variable in model.trainable_variables]
        exchanges = [exchange(workers, gradients) for _ in range(4)][1:] if workers.cluster is not None else [0.0]
        print(json.dumps({"step_s": min(steps), "exchange_s": min(exchanges), "parameters": model.count_params()}))


def exchange(workers: Any, gradients: list[Any]) -> float:
    """Return the seconds to sum tensors with the shapes of the gradients over all processes."""
    import tensorflow as tf

    @tf.function
    def summed() -> Any:
        def replica() -> Any:
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)

        for _ in tf.range(STEPS):
            workers.strategy.run(replica)
        return 0

    start = time.monotonic()
    summed()
    return (time.monotonic() - start) / STEPS


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch", type=int, default=BATCH, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.batch)
        return
    rounds = [
        {count: (workers(count), workers(count, False)) for count in arguments.workers} for _ in range(arguments.rounds)
    ]
    first = arguments.workers[0]
    baseline = median(results[first][0]["step_s"] for results in rounds)
    table = {}
    for count in arguments.workers:
        step, shared = (median(results[count][0][key] for results in rounds) for key in ("step_s", "exchange_s"))
        independent = median(results[count][1]["step_s"] for results in rounds)
        table[str(count)] = {
            "step_ms": round(step * 1e3, 1),
            "apart_ms": round(independent * 1e3, 1),
            "exchange_ms": round(shared * 1e3, 2),
            "speedup": round(baseline / step, 2),
            "speedup_apart": round(baseline / independent, 2),
            "speedup_by_model": round(baseline / (independent + shared), 2),
        }
    parameters = rounds[0][first][0]["parameters"]
    print(json.dumps({"cores": os.cpu_count(), "parameters": parameters, "workers": table}, indent=1))


if __name__ == "__main__":
    main()
