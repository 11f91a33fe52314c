"""Train an LSTM word model on text with Horovod, with or without compressed gradients.

horovodrun --gloo -np 2 -H localhost:2 python examples/pytorch_language_model.py --compression dgc
"""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import click
import common
import common_pytorch
import datasets
import horovod.torch as hvd
import numpy as np
import torch
from torch import nn
from torch.nn import functional

State = tuple[torch.Tensor, torch.Tensor]  # hidden and cell, each float32 (layers, columns, width)
Batch = tuple[np.ndarray, np.ndarray]  # words and those that follow, each int64 (time, columns)


class WordModel(nn.Module):
    """Embedding, two LSTM layers of the same width, and the embedding again as the output layer.

    Args:
        words: size of the vocabulary.
        width: of the embedding and of both LSTM layers.
        dropout: probability, on the embedding and on the output of each layer.
    """

    def __init__(self, words: int, width: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, words, bias=False)
        self.output.weight = self.embedding.weight
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, words: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Scores of the next word, float32 (time, columns, vocabulary), after int64 (time, columns) words."""
        outputs, state = self.lstm(self.dropout(self.embedding(words)), state)
        return self.output(self.dropout(outputs)), state

    def start(self, columns: int) -> State:
        zeros = self.output.weight.new_zeros(self.lstm.num_layers, columns, self.lstm.hidden_size)
        return zeros, zeros


@click.command(help=__doc__.splitlines()[0])
@common.language_model_options
def main(**options: Any) -> None:
    args = SimpleNamespace(**options)
    device = common_pytorch.start(args)
    corpus = datasets.index_words(datasets.TEXTS[args.dataset](args.data_dir), args.vocabulary)
    train = datasets.Columns(corpus.train, args.batch_size, args.bptt, hvd.rank(), hvd.size())
    valid = datasets.Columns(corpus.valid, args.test_batch_size, args.bptt, hvd.rank(), hvd.size())
    model = WordModel(len(corpus.vocabulary), args.width, args.dropout).to(device)
    state = model.start(args.batch_size)

    def training_batches(_epoch: int) -> Iterator[Batch]:
        nonlocal state
        state = model.start(args.batch_size)
        yield from train

    def loss_and_state(batch: Batch, state: State) -> tuple[torch.Tensor, State]:
        words, following = (torch.from_numpy(part).to(device) for part in batch)
        scores, (hidden, cell) = model(words, state)
        loss = functional.cross_entropy(scores.flatten(0, 1), following.flatten())
        return loss, (hidden.detach(), cell.detach())

    def loss_of(batch: Batch) -> torch.Tensor:
        nonlocal state
        loss, state = loss_and_state(batch, state)
        return loss

    def validate() -> dict[str, float]:
        losses = []
        at = model.start(args.test_batch_size)
        for batch in valid:
            loss, at = loss_and_state(batch, at)
            losses.append(loss.item())
        loss = common_pytorch.average(sum(losses) / len(losses), len(losses))
        return {"validation_loss": loss, "validation_perplexity": math.exp(loss)}

    # The generators agree so far, and dropout must not.
    torch.manual_seed(args.seed + hvd.rank())
    common_pytorch.Trainer(args, model, len(train)).fit(training_batches, loss_of, validate)


if __name__ == "__main__":
    main()
