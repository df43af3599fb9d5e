"""Write Keras 3 models with unusual inputs, and their outputs for random images. Run as a separate process."""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers

SHAPE = (16, 16, 3)


def classifier(preprocess, shape=SHAPE):
    inputs = keras.Input(shape)
    x = layers.Conv2D(4, 3, activation="relu")(preprocess(inputs))
    return keras.Model(inputs, layers.Dense(3, "softmax")(layers.GlobalAveragePooling2D()(x)))


def with_policy(policy):
    keras.mixed_precision.set_global_policy(policy)
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(8, 3, use_bias=False)(layers.Rescaling(1 / 255)(inputs))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    model = keras.Model(inputs, layers.Dense(3, "softmax", dtype="float32")(x))
    keras.mixed_precision.set_global_policy("float32")
    return model


def transfer():
    """A functional base model inside a functional model, called with training=False."""
    base_inputs = keras.Input(SHAPE)
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(base_inputs))
    base = keras.Model(base_inputs, layers.ReLU()(x), name="base")
    base.trainable = False
    inputs = keras.Input(SHAPE)
    x = base(layers.Rescaling(1 / 127.5, -1)(inputs), training=False)
    return keras.Model(inputs, layers.Dense(3, "softmax")(layers.GlobalAveragePooling2D()(x)))


def nested_twice():
    """A model with two levels of nesting."""
    inner_inputs = keras.Input((14, 14, 4))
    inner = keras.Model(inner_inputs, layers.BatchNormalization()(layers.Conv2D(4, 3)(inner_inputs)), name="inner")
    outer_inputs = keras.Input(SHAPE)
    outer = keras.Model(outer_inputs, inner(layers.Conv2D(4, 3)(outer_inputs)), name="outer")
    head = keras.Sequential([keras.Input((4,)), layers.Dense(4, "relu"), layers.Dense(3, "softmax")], name="head")
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, head(layers.GlobalAveragePooling2D()(outer(layers.Rescaling(1 / 255)(inputs)))))


def channels_first():
    first = {"data_format": "channels_first"}
    inputs = keras.Input((3, 16, 16))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.BatchNormalization(axis=1)(layers.Conv2D(4, 3, **first)(x))
    x = layers.MaxPooling2D(**first)(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(3, "softmax")(layers.Flatten()(x)))


def main(folder):
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0, 255, (6, *SHAPE)).astype(np.float32)
    preprocess = keras.applications.imagenet_utils.preprocess_input
    models = {policy: with_policy(policy) for policy in ("mixed_float16", "mixed_bfloat16", "float16", "bfloat16")} | {
        "caffe": classifier(lambda x: preprocess(x, mode="caffe")),
        "torch": classifier(lambda x: preprocess(x, mode="torch")),
        "reversed": classifier(lambda x: x[..., ::-1] / 127.5 - np.array([1.0, 0.5, 0.25], np.float32)),
        "cropped": classifier(lambda x: layers.Rescaling(1 / 255)(keras.ops.flip(x, axis=-1))[:, 2:-1, 1:, :]),
        "strided": classifier(lambda x: x[:, ::2] / 255),
        "plain": classifier(lambda x: x),
        "transfer": transfer(),
        "twice": nested_twice(),
        "channels_first": channels_first(),
    }
    outputs = {}
    for name, model in models.items():
        model.set_weights([rng.uniform(0.05, 0.5, w.shape) - 0.2 * (w.ndim > 1) for w in model.get_weights()])
        outputs[name] = np.asarray(
            model.predict(pixels.transpose(0, 3, 1, 2) if name == "channels_first" else pixels, verbose=0), np.float32
        )
        model.save(folder / f"{name}.keras")
    models["plain"].export(folder / "plain", verbose=False)
    np.savez(folder / "outputs.npz", **outputs)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
