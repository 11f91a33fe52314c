"""Train a residual network on images with Horovod and Keras's fit(), with or without compressed gradients.

horovodrun --gloo -np 2 -H localhost:2 python examples/tensorflow_keras_images.py --compression dgc
"""

import math
from types import SimpleNamespace
from typing import Any

import click
import common
import common_tensorflow
import datasets
import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_dgc.tensorflow import (
    BroadcastGlobalVariablesCallback,
    DistributedOptimizer,
    LearningRateWarmupCallback,
    MetricAverageCallback,
)

layers = tf.keras.layers


def convolution(inputs: tf.Tensor, outputs: int, size: int, stride: int = 1) -> tf.Tensor:
    """A convolution with as much padding on every side, which Keras's own "same" has not where it strides."""
    padded = layers.ZeroPadding2D(size // 2)(inputs) if size > 1 else inputs
    return layers.Conv2D(outputs, size, stride, use_bias=False, kernel_initializer=initial())(padded)


def normalisation(inputs: tf.Tensor) -> tf.Tensor:
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(inputs)


def initial() -> tf.keras.initializers.Initializer:
    """PyTorch's default for convolutions and linear layers."""
    return tf.keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


def residual_block(inputs: tf.Tensor, outputs: int) -> tf.Tensor:
    """Two 3 x 3 convolutions with batch normalisation that halve the image, and a 1 x 1 shortcut."""
    y = layers.ReLU()(normalisation(convolution(inputs, outputs, 3, stride=2)))
    y = normalisation(convolution(y, outputs, 3))
    return layers.ReLU()(layers.Add()([y, convolution(inputs, outputs, 1, stride=2)]))


def residual_net(shape: tuple[int, int, int], classes: int, width: int = 24) -> tf.keras.Model:
    """Strided stem and three residual blocks of 2, 4 and 8 times its width: the network of pytorch_images.py.

    The default width makes 0.7 million parameters, 1,402 of them in tensors of one dimension.

    Args:
        shape: height, width and channels of the images.
        classes: number of outputs.
        width: channels after the stem.
    """
    inputs = tf.keras.Input(shape)
    x = layers.ReLU()(normalisation(convolution(inputs, width, 3, stride=2)))
    for factor in (2, 4, 8):
        x = residual_block(x, factor * width)
    x = layers.GlobalAveragePooling2D()(x)
    limit = 1 / math.sqrt(8 * width)
    bias = tf.keras.initializers.RandomUniform(-limit, limit)
    return tf.keras.Model(inputs, layers.Dense(classes, kernel_initializer=initial(), bias_initializer=bias)(x))


class CosineDecay(tf.keras.callbacks.Callback):
    """Lowers the learning rate along half a cosine once the warm-up is over."""

    def __init__(self, job: common.Job) -> None:
        super().__init__()
        self.job = job

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.job.steps >= self.job.args.warmup_epochs * self.job.steps_per_epoch:
            self.model.optimizer.learning_rate = self.job.learning_rate()


class Reporting(tf.keras.callbacks.Callback):
    """Tells the job how training goes; stands after MetricAverageCallback, whose means it reports."""

    def __init__(self, job: common.Job) -> None:
        super().__init__()
        self.job = job

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.job.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if (batch + 1) % self.job.args.batches_per_allreduce == 0:
            self.job.end_step()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        figures = {"validation_loss": logs["val_loss"], "validation_accuracy": logs["val_accuracy"]}
        self.job.end_epoch(logs["loss"], figures)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.job.end()


@click.command(help=__doc__.splitlines()[0])
@common.image_options
def main(**options: Any) -> None:
    args = SimpleNamespace(**options)
    common_tensorflow.start(args)
    data = datasets.IMAGES[args.dataset](args.data_dir)
    mean, deviation = data.train_images.mean(), data.train_images.std()

    def normalised(images: tf.Tensor) -> tf.Tensor:
        return (tf.cast(images, tf.float32) - mean) / deviation

    with tf.device("CPU"):
        images = tf.constant(data.train_images.transpose(0, 2, 3, 1))
        labels = tf.constant(data.train_labels)
    batches_per_epoch = len(images) // hvd.size() // args.batch_size

    def flipped_batch(indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Images, each mirrored with probability one half, and labels."""
        flipped = tf.image.random_flip_left_right(tf.gather(images, indices), seed=args.seed + hvd.rank())
        return normalised(flipped), tf.gather(labels, indices)

    # All workers draw the same order, a new one in each epoch, and take turns in it.
    order = tf.data.Dataset.range(len(images)).shuffle(len(images), seed=args.seed).shard(hvd.size(), hvd.rank())
    batches = order.batch(args.batch_size, drop_remainder=True).map(flipped_batch)

    mine = slice(hvd.rank(), None, hvd.size())
    test_images = normalised(data.test_images[mine].transpose(0, 2, 3, 1))
    test = tf.data.Dataset.from_tensor_slices((test_images, data.test_labels[mine])).batch(args.test_batch_size)

    model = residual_net(images.shape[1:], int(data.train_labels.max()) + 1, args.width)
    parameters = sum(math.prod(v.shape) for v in model.trainable_variables)
    job = common.Job(args, hvd.rank(), hvd.size(), batches_per_epoch, parameters)
    optimizer, compression = common_tensorflow.optimizer_and_compression(job, model)
    optimizer = DistributedOptimizer(
        optimizer,
        compression=compression,
        backward_passes_per_step=args.batches_per_allreduce,
        average_aggregated_gradients=True,
        gradient_predivide_factor=args.gradient_predivide_factor,
    )
    # Horovod's operations cannot be compiled by XLA.
    model.compile(
        optimizer, tf.keras.losses.SparseCategoricalCrossentropy(True), metrics=["accuracy"], jit_compile=False
    )

    whole_steps = job.steps_per_epoch * args.batches_per_allreduce
    callbacks = [
        BroadcastGlobalVariablesCallback(0),
        MetricAverageCallback(),
        CosineDecay(job),
        Reporting(job),
    ]
    if args.warmup_epochs:
        # As in Horovod, it begins at the scaled rate over the number of workers.
        scaled_lr = args.base_lr * job.lr_scale
        callbacks.insert(0, LearningRateWarmupCallback(scaled_lr, args.warmup_epochs, whole_steps))
    with job:
        model.fit(
            batches.take(whole_steps).prefetch(2),
            epochs=args.epochs,
            validation_data=test,
            callbacks=callbacks,
            shuffle=False,
            verbose=0,
        )


if __name__ == "__main__":
    main()
