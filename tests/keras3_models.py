"""Write Keras 3 models like those of users, and their outputs for random images. Run as a separate process."""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers

SHAPE = (16, 16, 3)


def sequential():
    return [
        keras.Input(SHAPE),
        layers.Rescaling(1 / 255),
        layers.Conv2D(4, 3, activation="relu6", kernel_regularizer="l2"),
        layers.SeparableConv2D(4, 3, activation="leaky_relu"),
        layers.BatchNormalization(),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dropout(0.2),
        layers.Dense(3, "softmax"),
    ]


def residual():
    """A residual model with operators, and with activations that Keras 2 does not have or defines differently."""
    inputs = keras.Input(SHAPE)
    x = first = layers.Conv2D(4, 3, padding="same", activation="hard_silu")(inputs / 127.5 - 1)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.LeakyReLU(0.1)(layers.BatchNormalization()(x))
    x = 1 - keras.ops.relu6(x + first) * 0.5
    gate = layers.Activation("hard_sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.GlobalAveragePooling2D()(layers.Multiply()([x, gate]))
    return keras.Model(inputs, layers.Dense(3, "softmax")(x))


def nested():
    """A model as in transfer-learning tutorials: augmentation, a frozen base with training=False, a sigmoid."""
    base = keras.Sequential([keras.Input(SHAPE), layers.Conv2D(4, 3, strides=2), layers.BatchNormalization()])
    base.trainable = False
    inputs = keras.Input(SHAPE)
    x = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1)])(inputs)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(base(layers.Rescaling(1 / 127.5, -1)(x), training=False)))
    return keras.Model(inputs, layers.Dense(1, "sigmoid")(x))


def red_or_blue():
    """A model that is right only on pixels in [0, 1]: an image is red if its red channel is above 0.65."""
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Conv2D(4, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )
    kernel, dense = np.zeros((3, 3, 3, 4)), np.zeros((4, 2))
    kernel[1, 1, 0, 0], dense[0, 1] = 1, 20
    model.set_weights([kernel, np.zeros(4), dense, np.array([0, -13])])
    return model


def harmful(marker):
    """A model with a Lambda layer that writes the file ``marker`` when it is called."""
    marker = str(marker)
    inputs = keras.Input(SHAPE)
    x = layers.Lambda(lambda x: (open(marker, "w").close(), x)[1], output_shape=SHAPE, name="innocent")(inputs)
    return keras.Model(inputs, layers.Dense(2, "softmax")(layers.Flatten()(x)))


def main(folder):
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (6, *SHAPE)).astype(np.float32)
    outputs = {"images": images}
    for name, model in (("sequential", keras.Sequential(sequential())), ("residual", residual()), ("nested", nested())):
        model.set_weights([rng.uniform(0.05, 0.5, w.shape) - 0.2 * (w.ndim > 1) for w in model.get_weights()])
        outputs[name] = model.predict(images, verbose=0)
        model.save(folder / f"{name}.keras")
        if name != "residual":  # Keras 3 cannot read operators back from .h5
            model.save(folder / f"{name}.h5")
    red_or_blue().save(folder / "red_or_blue.keras")
    red_or_blue().export(folder / "red_or_blue", verbose=False)
    red_or_blue().save_weights(folder / "only.weights.h5")
    nested().export(folder / "augmented", verbose=False)
    for suffix in (".keras", ".h5"):
        harmful(folder / "marker").save(folder / f"harmful{suffix}")
    keras.models.load_model(folder / "harmful.keras", safe_mode=False)(images)
    (folder / "marker").unlink()  # the file proves that the Lambda would be executed
    np.savez(folder / "outputs.npz", **outputs)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
