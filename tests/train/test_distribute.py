"""Training one model with several processes and on several devices."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edgerec import Recipe, Run
from edgerec.errors import EdgerecError, RecipeError, TrainError
from edgerec.train import worker_handshake
from edgerec.train.input_pipeline import Replicas, evaluation_steps
from edgerec.train.worker_handshake import Cluster, handshake
from tests.conftest import error_line

WORKER = Path(__file__).parent.parent / "worker.py"


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [f"127.0.0.1:{opened.getsockname()[1]}" for opened in sockets]


def configured(addresses, index, **others):
    cluster = {"worker": list(addresses)}
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}} | others)}


def start_all(out, settings, *methods, count=2):
    addresses = free_ports(count)
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(out), json.dumps(settings), *methods],
            env=os.environ | configured(addresses, index) | {"PYTHONPATH": str(WORKER.parent.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def outputs_of(processes):
    outputs = []
    for process in processes:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error[-3000:]
        outputs.append(json.loads(out.splitlines()[-1]))
    return outputs


# --- The workers connect


def test_cluster_is_read_from_tf_config(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert Cluster.from_environment() is None
    cluster = {"chief": ["a:1"], "worker": ["b:2", "[::1]:3"]}
    for kind, number, index in (("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)):
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": number}}))
        read = Cluster.from_environment()
        assert (read.index, read.chief, read.addresses) == (index, index == 0, ("a:1", "b:2", "[::1]:3"))
        assert read.position(kind, number) == index
    for single_worker in ("", "{}", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}'):
        monkeypatch.setenv("TF_CONFIG", single_worker)
        assert Cluster.from_environment() is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "TF_CONFIG cannot be used"),
        ("[]", "TF_CONFIG cannot be used"),
        ('{"cluster": {"ps": ["a:1"], "worker": ["b:1"]}, "task": {}}', "unknown job 'ps'"),
        (
            '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
            "the cluster has no worker 2",
        ),
        (
            '{"cluster": {"worker": ["a:1", "b"]}, "task": {"type": "worker", "index": 0}}',
            "'b' is not a valid network address",
        ),
        ('{"cluster": {"worker": ["a:1", "b:1"]}}', "TF_CONFIG cannot be used"),
    ],
)
def test_invalid_tf_config_is_refused(monkeypatch, text, message):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(TrainError, match=message):
        Cluster.from_environment()


def connect_all(clusters, hellos=None, wait_s=20):
    """Run the handshake of all workers; return the error message of each worker, or None."""
    errors = [None] * len(clusters)

    def run(number, cluster):
        try:
            handshake(cluster, (hellos or [{"edgerec": "1"}] * len(clusters))[number], wait_s)
        except EdgerecError as error:
            errors[number] = str(error)

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(clusters)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return errors


def test_workers_connect_despite_connections_from_other_programs():
    addresses = tuple(free_ports(3))
    other_program = threading.Thread(target=disturb, args=(addresses[1],))
    other_program.start()
    assert connect_all([Cluster(addresses, index) for index in range(3)]) == [None] * 3
    other_program.join()


def test_workers_may_start_long_after_each_other(monkeypatch):
    """The last worker starts later than the timeout for the first message of a connection."""
    monkeypatch.setattr(worker_handshake, "_HELLO_S", 0.3)
    addresses = tuple(free_ports(3))
    delayed = threading.Timer(1.2, handshake, (Cluster(addresses, 2), {"edgerec": "1"}, 20))
    delayed.start()
    assert connect_all([Cluster(addresses, 0), Cluster(addresses, 1)], [{"edgerec": "1"}] * 2) == [None] * 2
    delayed.join()


def disturb(address):
    host, port = address.split(":")
    for text in (b"", b"GET / HTTP/1.1\r\n\r\n", b'{"cluster": []}\n', b"\xff\xff\n"):
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1) as connection:
            connection.sendall(text)


def test_missing_worker_is_named_after_the_timeout():
    addresses = tuple(free_ports(3))
    chief, worker = connect_all([Cluster(addresses, 0), Cluster(addresses, 1)], wait_s=1)
    assert chief.startswith(f"worker 2 ({addresses[2]}) did not answer within 1 s")
    assert worker.startswith(f"the connection to the chief ({addresses[0]}) was closed")
    [lone_worker] = connect_all([Cluster(addresses, 1)], wait_s=0.3)
    assert lone_worker.startswith(f"the chief ({addresses[0]}) did not connect within 0.3 s")


def test_different_version_and_occupied_port_are_refused():
    addresses = tuple(free_ports(2))
    messages = connect_all([Cluster(addresses, 0), Cluster(addresses, 1)], [{"edgerec": "2"}, {"edgerec": "1"}])
    assert (
        messages
        == [f"worker 1 ({addresses[1]}) has edgerec 1, but the chief has 2: install the same version on all"] * 2
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = f"127.0.0.1:{taken.getsockname()[1]}"
        [message] = connect_all([Cluster((addresses[0], busy), 1)], wait_s=1)
    assert "Cannot listen on port" in message


# --- Batches on several devices


def test_replicas_share_training_and_validation_batches():
    assert [list(Replicas(first, 2, 4).numbers) for first in (0, 2)] == [[0, 1], [2, 3]]
    assert evaluation_steps(np.arange(1000)) == 4
    assert evaluation_steps(np.arange(1000), Replicas(1, 1, 4)) == 1


# Recipes that together set every key of the sections train, augment and transfer to a value other than its default.
TWO_DEVICE_RECIPES = [
    {
        "train.class_weights": "balanced",
        "train.accumulate": 2,
        "train.optimizer": "sgd",
        "train.weight_decay": 0.01,
        "train.early_stopping": 1,
        "train.max_hours": 1.0,
        "train.price_per_hour": 1.0,
        "augment.mixup": 0.2,
        "augment.cutmix": 1.0,
        "augment.flip": True,
        "augment.crop": 0.2,
        "augment.cutout": 0.3,
    },
    {
        "train.class_weights": "balanced",
        "train.schedule": "plateau",
        "train.mixed_precision": True,
        "train.xla": True,
        "model.dropout": 0.3,
        "augment.motion_blur": 0.1,
        "augment.exposure_stops": 0.5,
        "augment.gamma": 0.3,
        "augment.noise": 0.05,
        "augment.jpeg": 60,
        "augment.randaugment": 1,
        "augment.randaugment_strength": 0.2,
    },
    {
        "train.epochs": 3,
        "train.accumulate": 4,
        "train.schedule": "constant",
        "train.warmup_epochs": 0.2,
        "train.device": "cpu",
        "train.class_weights": "balanced",
        "model.weights": "FIRST/model.keras",
        "transfer.frozen": 0.34,
        "transfer.unfreeze": 0.34,
        "transfer.rate": 0.5,
        "transfer.freeze_bn": False,
    },
    {
        "distill.teachers": "FIRST",
        "distill.weight": 0.5,
        "distill.temperature": 2.0,
        "train.accumulate": 2,
        "train.class_weights": "balanced",
        "train.weight_decay": 0.01,
    },
    {"model.arch": "autoencoder", "train.accumulate": 2},
]


@pytest.mark.nightly
def test_every_training_key_works_on_two_devices(tmp_path):
    """TensorFlow divides the CPU into two logical devices, which train like two GPUs."""
    program = f"""
import json, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from pathlib import Path
from edgerec import Recipe, fit, quantize
from edgerec.errors import RecipeError
devices, text = [], json.dumps({TWO_DEVICE_RECIPES!r}).replace("FIRST", {str(tmp_path / "0")!r})
small = {{"train.epochs": 2, "train.batch_size": 32, "model.width": 0.25, "data.test_fraction": 0.5}}
for number, changes in enumerate(json.loads(text)):
    def on_epoch(_, model):
        devices.append(len(model.weights[0].values))
    finish = number < 2  # the other runs are not used again
    fit(Recipe().override(small | changes), {str(tmp_path)!r} + f"/{{number}}", on_epoch=on_epoch, finish=finish)
# Two devices cannot share the batches of this run. This is an error for QAT, which trains, but not for PTQ.
recipe = Path({str(tmp_path / "0" / "recipe.toml")!r})
recipe.write_text(recipe.read_text().replace("batch_size = 32", "batch_size = 33"))
ptq = quantize(recipe.parent, "ptq", max_drop=100)
try:
    quantize(recipe.parent, "qat", max_drop=100)
except RecipeError as error:
    print(json.dumps({{"devices": devices, "ptq": ptq.variant, "qat": str(error)}}))
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=900, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    result = json.loads(process.stdout.splitlines()[-1])
    assert set(result["devices"]) == {2}  # each weight has a copy on each device
    assert result["ptq"] == "int8"
    assert "train.batch_size is 33, but must be a multiple of 4, because 2 devices share each batch" in result["qat"]
    for number in range(len(TWO_DEVICE_RECIPES)):
        run = Run.at(tmp_path / str(number))
        assert run.history()[-1]["loss"] < run.history()[0]["loss"]


def test_batch_size_must_be_divisible_by_devices_and_micro_batches():
    from edgerec.train.distribute import Workers

    with pytest.raises(RecipeError, match=r"train\.batch_size is 50, but must be a multiple of 4, because 4 devices"):
        Workers(replicas=Replicas(0, 1, 4)).check_batch(50)
    with pytest.raises(
        RecipeError, match=r"is 48, but must be a multiple of 32, because 4 devices share each batch, and each"
    ):
        Workers(replicas=Replicas(0, 1, 4)).check_batch(48, accumulate=8)


# --- Two worker processes


def training_images(run):
    """The number of occurrences of each training image, by the checksum of its pixels."""
    dataset, parts = run.data()
    return Counter(zlib.crc32(image.tobytes()) for image in dataset.images[parts.train])


SETTINGS = {
    "train.epochs": 3,
    "train.batch_size": 32,
    "model.width": 0.5,
    "compress.epochs": 1,
    "compress.max_drop": 50.0,
    "train.workers_wait_s": 60.0,
}


@pytest.mark.nightly
def test_two_workers_have_equal_weights_and_resume_after_one_is_killed(tmp_path):
    out = tmp_path / "run"
    chief, worker = start_all(out, SETTINGS)
    deadline = time.monotonic() + 200
    while not (out / "checkpoints").is_dir() or not list((out / "checkpoints").glob("epoch*")):
        assert chief.poll() is None, chief.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    _, error = chief.communicate(timeout=200)
    assert chief.returncode == 1
    assert "was lost: start the command again on all workers" in error
    assert not Run(out).finished
    epochs_done = len(Run(out).history())
    assert 1 <= epochs_done < 3
    chief_output, worker_output = outputs_of(start_all(out, SETTINGS, "qat", "prune"))
    assert chief_output["weights"] == worker_output["weights"]
    assert len(chief_output["weights"]) == 3 - epochs_done  # resumed after the last checkpoint
    assert chief_output["models"] == worker_output["models"]
    run = Run.open(out)
    assert [row["epoch"] for row in run.history()] == [1, 2, 3]
    assert run.variants()["int8-qat"]["model_sha256"] == chief_output["models"]["qat"]
    assert run.metrics["accuracy"] > 0.7
    # In each epoch, one of the workers trains on each image once, except for images of the last incomplete batch.
    train = run.split_record["train_images"]
    numbers = train // 32 * 2
    for epoch in range(epochs_done, 3):
        trained = Counter()
        for output in (chief_output, worker_output):
            for number, images in output["images"].items():
                trained.update(images if int(number) // numbers == epoch else [])
        assert sum(trained.values()) == train // 32 * 32
        assert not trained - training_images(run)
    assert not list(Path(tmp_path).rglob("*partial*"))


@pytest.mark.nightly
def test_workers_with_different_recipes_are_refused(tmp_path, edgerec):
    addresses, results = free_ports(2), [None, None]

    def train(index):
        arguments = ("--out", tmp_path / "run", "--epochs", 2, "--learning-rate", (0.1, 0.2)[index])
        results[index] = edgerec("train", "--data", "digits", *arguments, env=os.environ | configured(addresses, index))

    threads = [threading.Thread(target=train, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert result.returncode == 1
        assert (
            f"worker 1 ({addresses[1]}) has train.learning_rate 0.2, but the chief has 0.1: give all workers the same"
            in result.stderr
        )
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_same_recipe_continues_a_run_and_other_recipe_is_refused(tmp_path, first_run):
    from edgerec.train.fit import was_begun

    assert not was_begun(Recipe(), tmp_path / "nothing")
    assert was_begun(first_run.recipe, first_run.path)
    as_typed = Recipe.from_dict({"train": {"epochs": 4}, "compress": {"epochs": 1, "max_drop": 3.0}})
    assert was_begun(as_typed, first_run.path)
    with pytest.raises(RecipeError, match=r"was started with train\.epochs=4, but this command sets train\.epochs=5"):
        was_begun(as_typed.override({"train.epochs": 5}), first_run.path)
    # A batch size larger than the number of training images was reduced when the run was started.
    images = first_run.split_record["train_images"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "split.json").write_bytes((first_run.path / "split.json").read_bytes())
    reduced = first_run.recipe.override({"train.batch_size": images})
    (tmp_path / "run" / "recipe.toml").write_text(reduced.to_toml())
    assert was_begun(as_typed.override({"train.batch_size": images + 1}), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"train\.batch_size"):
        was_begun(as_typed.override({"train.batch_size": images - 1}), tmp_path / "run")
    # Older versions did not record the number of training images.
    (tmp_path / "run" / "split.json").write_text('{"digest": "0", "val": [], "test": []}')
    assert was_begun(as_typed.override({"train.batch_size": images}), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"train\.batch_size"):
        was_begun(as_typed.override({"train.batch_size": images + 1}), tmp_path / "run")


def test_command_reports_invalid_tf_config_in_one_line(edgerec, tmp_path):
    result = edgerec("train", "--data", "digits", "--out", tmp_path / "run", env=os.environ | {"TF_CONFIG": "{"})
    assert "TF_CONFIG cannot be used" in error_line(result)
    assert not (tmp_path / "run").exists()
