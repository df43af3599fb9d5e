"""Compile a classifier or autoencoder for training, optionally with gradient accumulation and distillation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from edgerec.train.backend import keras, without_autograph
from edgerec.utils.optional import require

log = logging.getLogger(__name__)


# Number of training steps per call from Python to TensorFlow.
# For a small model, a call from Python takes longer than the training step itself.
STEPS_PER_CALL = 20


def compile_classifier(
    model: Any,
    optimizer: Any,
    steps_per_call: int,
    *,
    xla: bool = False,
    micro_batches: int = 1,
    soft_labels: bool = False,
    teacher: Callable[..., Any] | None = None,
    teacher_weight: float = 0.0,
) -> None:
    """Compile a classifier or autoencoder, and create all variables required for training.

    A classifier is trained with cross-entropy. A model whose output has the shape of its input is an autoencoder. It is
    trained with the mean squared error between output and normalized pixels, and the labels are ignored.

    By default, Keras creates the variables of metrics and optimizer in the first step, so that TensorFlow traces this
    step twice, which is slow for large models. Creating the variables here avoids the second trace.

    Args:
        model: a model with softmax scores ``(batch, classes)`` as its output, or an autoencoder.
        optimizer: a Keras optimizer.
        steps_per_call: number of steps between two calls of the callbacks.
        xla: compile each step with XLA. This has no effect with several CPU devices, because TensorFlow does not
            support this combination.
        micro_batches: number of micro-batches per batch for gradient accumulation, which saves memory.
        soft_labels: whether the labels are soft labels ``(batch, classes)`` instead of class indices ``(batch,)``.
        teacher: distillation loss, a function of pixels, scores and image weights.
        teacher_weight: weight of the distillation loss, 0 to 1. The label loss has the weight ``1 - teacher_weight``.
    """
    tf = require("tensorflow")
    autoencoder, strategy = reconstructs(model), tf.distribute.get_strategy()
    if xla and strategy.num_replicas_in_sync > 1 and "CPU" in strategy.extended.worker_devices[0]:
        log.warning("train.xla has no effect on several CPU devices, because XLA cannot access their variables")
        xla = False
    loss_by_name = "categorical_crossentropy" if soft_labels else "sparse_categorical_crossentropy"
    model.compile(
        optimizer,
        loss="mean_squared_error" if autoencoder else loss_by_name,
        metrics=[] if autoencoder else ["accuracy"],
        steps_per_execution=steps_per_call,
        jit_compile=xla,
    )
    if micro_batches > 1 or teacher is not None:

        def loss(pixels: Any, classes: Any, scores: Any, weight: Any) -> Any:
            total = model.compute_loss(pixels, classes, scores, weight)
            if teacher is None:
                return total
            # Losses are divided by the number of devices, because gradients are summed over all devices.
            devices = strategy.num_replicas_in_sync
            # The factor ``1 - teacher_weight`` applies only to the label loss, not to the regularization losses.
            regularization = tf.add_n(model.losses) / devices if model.losses else 0.0
            distillation = teacher(pixels, scores, weight) / devices
            label_loss = total - regularization
            return regularization + (1 - teacher_weight) * label_loss + teacher_weight * distillation

        model.train_step = partial(_accumulated_step, model, micro_batches, loss)
    if autoencoder:
        model.train_step, model.test_step = (
            partial(_reconstruction_step, step) for step in (model.train_step, model.test_step)
        )
    model.train_step, model.test_step = without_autograph(model.train_step), without_autograph(model.test_step)
    scores = tf.zeros((1, *model.output_shape[1:]))
    classes = scores if soft_labels or autoencoder else tf.zeros((1, 1), tf.int64)
    model.compiled_loss.build(scores)
    model.compiled_metrics.build(scores, classes)
    model.optimizer.build(model.trainable_variables)


def reconstructs(model: Any) -> bool:
    """Return whether a Keras model is an autoencoder, i.e. its input and output are images of the same shape."""
    return len(model.output_shape) == 4 and model.output_shape == model.input_shape


def _reconstruction_step(step: Callable[..., Any], data: Any) -> Any:
    """Run a Keras training or test step with the input images as targets."""
    pixels = keras().utils.unpack_x_y_sample_weight(data)[0]
    return step((pixels, pixels))


def _accumulated_step(model: Any, micro_batches: int, loss: Callable[..., Any], data: Any) -> Any:
    """Train one step with gradient accumulation, and return the metrics.

    Args:
        model: the compiled model.
        micro_batches: number of micro-batches, a divisor of the batch size.
        loss: function of pixels, classes, scores and image weights (or None).
        data: the batch from the input pipeline.
    """
    tf = require("tensorflow")
    x, y, weights = keras().utils.unpack_x_y_sample_weight(data)
    optimizer, variables = model.optimizer, model.trainable_variables
    scaled = isinstance(optimizer, keras().mixed_precision.LossScaleOptimizer)
    sums, scores = [tf.zeros_like(variable) for variable in variables], []
    pieces = [[None] * micro_batches if value is None else tf.split(value, micro_batches) for value in (x, y, weights)]
    for pixels, classes, weight in zip(*pieces, strict=True):
        # The control dependency saves memory, because TensorFlow then computes the micro-batches sequentially.
        with tf.control_dependencies(sums), tf.GradientTape() as tape:
            scores.append(model(tf.identity(pixels), training=True))
            value = loss(pixels, classes, scores[-1], weight)
            value = optimizer.get_scaled_loss(value) if scaled else value
        gradients = tape.gradient(value, variables)
        gradients = optimizer.get_unscaled_gradients(gradients) if scaled else gradients
        sums = [total + _dense(gradient) / micro_batches for total, gradient in zip(sums, gradients, strict=True)]
    optimizer.apply_gradients(zip(sums, variables, strict=True))
    return model.compute_metrics(x, y, tf.concat(scores, 0), weights)


def _dense(gradient: Any) -> Any:
    """Return a gradient as a dense tensor, so that gradients can be added.

    The gradient of an embedding is sparse (``tf.IndexedSlices``), and the gradient of an unused weight is None.
    """
    return 0.0 if gradient is None else require("tensorflow").convert_to_tensor(gradient)
