"""A worker of tests/train/test_distribute.py: train, resume after an interruption, quantize, and print the results."""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from pathlib import Path

from edgerec import Recipe, fit, quantize
from edgerec.train import input_pipeline as feed
from edgerec.train.fit import was_begun


def main(out: Path, settings: dict[str, object], methods: list[str]) -> None:
    recipe, weights, image_digests = Recipe().override(settings), [], {}

    def after_epoch(epoch, model):
        content = b"".join(value.tobytes() for value in model.get_weights())
        weights.append(hashlib.sha256(content).hexdigest())

    def record(number, images):
        image_digests[int(number)] = [zlib.crc32(image.tobytes()) for image in images]

    finisher = feed.batch_finisher

    def recording_finisher(*arguments):
        import tensorflow as tf

        finish = finisher(*arguments)

        def recording_finish(pixels, classes, number):
            batch, *others = finish(pixels, classes, number)
            with tf.control_dependencies([tf.numpy_function(record, [number, pixels], [])]):
                return tf.identity(batch), *others

        return recording_finish

    feed.batch_finisher = recording_finisher
    run = fit(recipe, out, resume=was_begun(recipe, out), on_epoch=after_epoch)
    trained_images = dict(image_digests)  # without the images of the fine-tuning
    models = {method: quantize(run, method).model_sha256 for method in methods}
    print(json.dumps({"weights": weights, "images": trained_images, "models": models}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:])
