"""A user's own objects, for snippets with TensorFlow and Keras."""

from __future__ import annotations

from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

hvd.init(process_sets="dynamic")


def objects() -> dict[str, Any]:
    """The names that a page's snippets may take for granted, new ones at each call."""
    model = tf.keras.Sequential([tf.keras.layers.Input((4,)), tf.keras.layers.Dense(3)])
    optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9)
    images, labels = np.zeros((8, 4), np.float32), np.zeros(8, np.int64)

    def train_one_batch(images: tf.Tensor, labels: tf.Tensor) -> None:
        pass

    return {
        "tf": tf,
        "hvd": hvd,
        "model": model,
        "optimizer": optimizer,
        "images": images,
        "labels": labels,
        "train_one_batch": train_one_batch,
        "batches": 3,
    }
