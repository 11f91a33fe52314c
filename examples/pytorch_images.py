"""Train a residual network on images with Horovod, with or without compressed gradients.

horovodrun --gloo -np 2 -H localhost:2 python examples/pytorch_images.py --compression dgc
"""

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
from torch.utils.data import BatchSampler
from torch.utils.data.distributed import DistributedSampler


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation that halve the image, and a 1 x 1 shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResidualNet(nn.Sequential):
    """Strided stem and three residual blocks of 2, 4 and 8 times its width.

    The default width makes 0.7 million parameters, 1,402 of them in tensors of one dimension.

    Args:
        channels: of the images.
        classes: number of outputs.
        width: channels after the stem.
    """

    def __init__(self, channels: int, classes: int, width: int = 24) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            ResidualBlock(width, 2 * width),
            ResidualBlock(2 * width, 4 * width),
            ResidualBlock(4 * width, 8 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8 * width, classes),
        )


def normalised(images: np.ndarray, mean: float, deviation: float) -> torch.Tensor:
    return (torch.tensor(images, dtype=torch.float32) - mean) / deviation


def flipped(images: torch.Tensor) -> torch.Tensor:
    """Each image mirrored with probability one half."""
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images, images.flip(-1))


@click.command(help=__doc__.splitlines()[0])
@common.image_options
def main(**options: Any) -> None:
    args = SimpleNamespace(**options)
    device = common_pytorch.start(args)
    data = datasets.IMAGES[args.dataset](args.data_dir)
    scale = data.train_images.mean(), data.train_images.std()
    images, labels = normalised(data.train_images, *scale), torch.tensor(data.train_labels)
    mine = slice(hvd.rank(), None, hvd.size())
    test_images = normalised(data.test_images[mine], *scale).to(device)
    test_labels = torch.tensor(data.test_labels[mine]).to(device)

    model = ResidualNet(images.shape[1], int(labels.max()) + 1, args.width).to(device)
    sampler = DistributedSampler(images, hvd.size(), hvd.rank(), seed=args.seed, drop_last=True)
    batches = BatchSampler(sampler, args.batch_size, drop_last=True)

    def training_batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        sampler.set_epoch(epoch)
        for indices in batches:
            yield flipped(images[indices]).to(device), labels[indices].to(device)

    def loss_of(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1])

    def validate() -> dict[str, float]:
        outputs = torch.cat([model(part) for part in test_images.split(args.test_batch_size)])
        right = (outputs.argmax(1) == test_labels).float().mean().item()
        loss = functional.cross_entropy(outputs, test_labels).item()
        return {
            "validation_loss": common_pytorch.average(loss, len(test_labels)),
            "validation_accuracy": common_pytorch.average(right, len(test_labels)),
        }

    # The generators agree so far, and flips must not.
    torch.manual_seed(args.seed + hvd.rank())
    common_pytorch.Trainer(args, model, len(batches)).fit(training_batches, loss_of, validate)


if __name__ == "__main__":
    main()
