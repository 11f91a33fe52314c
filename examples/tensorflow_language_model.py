"""Train an LSTM word model on text with Horovod and DistributedGradientTape, with or without compressed gradients.

horovodrun --gloo -np 2 -H localhost:2 python examples/tensorflow_language_model.py --compression dgc
"""

import math
import statistics
from itertools import islice
from types import SimpleNamespace
from typing import Any

import click
import common
import common_tensorflow
import datasets
import horovod.tensorflow as hvd
import tensorflow as tf

State = list[list[tf.Tensor]]  # of each layer hidden and cell, each float32 (columns, width)


class WordModel(tf.keras.Model):
    """Embedding, two LSTM layers of the same width, and the embedding again as the output layer.

    Args:
        words: size of the vocabulary.
        width: of the embedding and of both LSTM layers.
        dropout: probability, on the embedding and on the output of each layer.
        seed: of the dropout.
    """

    def __init__(self, words: int, width: int, dropout: float, seed: int) -> None:
        super().__init__()
        self.embedding = tf.keras.layers.Embedding(words, width, embeddings_initializer=uniform(0.1))
        self.lstm = [lstm(width), lstm(width)]
        self.dropout = tf.keras.layers.Dropout(dropout, seed=seed)

    def call(self, words: tf.Tensor, state: State, training: bool = False) -> tuple[tf.Tensor, State]:
        """Scores of the next word, float32 (columns, time, vocabulary), after int64 (columns, time) words."""
        outputs = self.dropout(self.embedding(words), training=training)
        following = []
        for layer, start in zip(self.lstm, state, strict=True):
            outputs, *end = layer(outputs, initial_state=start)
            outputs = self.dropout(outputs, training=training)
            following.append(end)
        return tf.matmul(outputs, tf.convert_to_tensor(self.embedding.embeddings), transpose_b=True), following

    def start(self, columns: int) -> State:
        return [[tf.zeros((columns, layer.units)) for _ in range(2)] for layer in self.lstm]


def lstm(width: int) -> tf.keras.layers.LSTM:
    """A layer with PyTorch's initial weights; of its two biases, which are always added, Keras has one."""
    limit = 1 / math.sqrt(width)
    return tf.keras.layers.LSTM(
        width,
        return_sequences=True,
        return_state=True,
        kernel_initializer=uniform(limit),
        recurrent_initializer=uniform(limit),
        bias_initializer=uniform(limit),
        unit_forget_bias=False,
    )


def uniform(limit: float) -> tf.keras.initializers.Initializer:
    # One object would give all weights of the same shape the same values.
    return tf.keras.initializers.RandomUniform(-limit, limit)


@click.command(help=__doc__.splitlines()[0])
@common.language_model_options
def main(**options: Any) -> None:
    args = SimpleNamespace(**options)
    common_tensorflow.start(args)
    corpus = datasets.index_words(datasets.TEXTS[args.dataset](args.data_dir), args.vocabulary)
    train = datasets.Columns(corpus.train, args.batch_size, args.bptt, hvd.rank(), hvd.size())
    valid = datasets.Columns(corpus.valid, args.test_batch_size, args.bptt, hvd.rank(), hvd.size())
    model = WordModel(len(corpus.vocabulary), args.width, args.dropout, seed=args.seed + hvd.rank())
    model(tf.zeros((args.batch_size, args.bptt), tf.int64), model.start(args.batch_size))

    weights = model.trainable_variables
    parameters = sum(math.prod(weight.shape) for weight in weights)
    job = common.Job(args, hvd.rank(), hvd.size(), len(train), parameters)
    optimizer, compression = common_tensorflow.optimizer_and_compression(job, model)
    optimizer.build(weights)
    # Horovod knows nothing of Keras 3's variables, only of those behind them.
    raw_weights = [weight.value for weight in weights]
    hvd.broadcast_variables([variable.value for variable in model.weights + optimizer.variables], root_rank=0)

    def loss_and_state(words: tf.Tensor, following: tf.Tensor, state: State, training: bool) -> tuple[tf.Tensor, State]:
        scores, state = model(words, state, training=training)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(following, scores)
        return tf.reduce_mean(losses), tf.nest.map_structure(tf.stop_gradient, state)

    @tf.function(autograph=False)
    def train_step(batches: list[tuple[tf.Tensor, tf.Tensor]], state: State) -> tuple[tf.Tensor, State]:
        """One exchange after as many batches as there are; returns their mean loss."""
        with tf.GradientTape() as tape:
            losses = []
            for words, following in batches:
                loss, state = loss_and_state(words, following, state, training=True)
                losses.append(loss)
            loss = tf.add_n(losses) / len(losses)
        tape = hvd.DistributedGradientTape(
            tape,
            compression=compression,
            # Gradients of embeddings are sparse, and would pass compression by.
            sparse_as_dense=True,
            gradient_predivide_factor=args.gradient_predivide_factor,
        )
        gradients = tape.gradient(loss, raw_weights)
        optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return loss, state

    @tf.function(autograph=False)
    def test_step(words: tf.Tensor, following: tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
        return loss_and_state(words, following, state, training=False)

    def validate() -> dict[str, float]:
        losses = []
        state = model.start(args.test_batch_size)
        for words, following in valid:
            loss, state = test_step(tf.constant(words.T), tf.constant(following.T), state)
            losses.append(float(loss))
        loss = common_tensorflow.average(statistics.fmean(losses), len(losses))
        return {"validation_loss": loss, "validation_perplexity": math.exp(loss)}

    with job:
        for _ in range(args.epochs):
            losses = []
            state = model.start(args.batch_size)
            batches = ((tf.constant(words.T), tf.constant(following.T)) for words, following in train)
            job.begin_epoch()
            for _ in range(job.steps_per_epoch):
                optimizer.learning_rate = job.learning_rate()
                loss, state = train_step(list(islice(batches, args.batches_per_allreduce)), state)
                losses.append(float(loss))
                job.end_step()
            figures = validate()
            job.end_epoch(common_tensorflow.average(statistics.fmean(losses), len(losses)), figures)
        job.end()


if __name__ == "__main__":
    main()
