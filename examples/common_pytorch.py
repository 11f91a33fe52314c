"""What the PyTorch examples share: set-up of Horovod and torch, and the training loop."""

import statistics
from collections.abc import Callable, Iterable
from itertools import islice
from types import SimpleNamespace
from typing import Any

import common
import horovod.torch as hvd
import torch

from horovod_dgc.torch import Compression


def start(args: SimpleNamespace) -> torch.device:
    """Initialise Horovod and the generators; returns the device of this worker."""
    hvd.init()
    torch.set_num_threads(args.cpu_threads)
    torch.manual_seed(args.seed)
    if torch.cuda.is_available():
        torch.cuda.set_device(hvd.local_rank())
        return torch.device("cuda")
    return torch.device("cpu")


def average(value: float, weight: float) -> float:
    """Mean of `value` over all workers, each counting with its `weight`."""
    total = hvd.allreduce(torch.tensor([value * weight, weight], dtype=torch.float64), op=hvd.Sum)
    return (total[0] / total[1]).item()


class Trainer:
    """Momentum SGD through Horovod's optimizer, with the compression that the options ask for.

    Args:
        args: the options.
        model: on this worker's device.
        batches_per_epoch: training batches of one worker in an epoch.
    """

    def __init__(self, args: SimpleNamespace, model: torch.nn.Module, batches_per_epoch: int) -> None:
        self.args = args
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        count = sum(p.numel() for p in self.parameters)
        self.job = common.Job(args, hvd.rank(), hvd.size(), batches_per_epoch, count)
        optimizer = torch.optim.SGD(
            self.parameters, lr=self.job.learning_rate(), momentum=args.momentum, weight_decay=args.wd
        )
        if self.job.method is not None:
            compression = Compression(self.job.method, optimizer, model.named_parameters())
        else:
            compression = hvd.Compression.none
        self.job.compression = compression
        self.optimizer = hvd.DistributedOptimizer(
            optimizer,
            named_parameters=model.named_parameters(),
            compression=compression,
            backward_passes_per_step=args.batches_per_allreduce,
            gradient_predivide_factor=args.gradient_predivide_factor,
        )
        hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        hvd.broadcast_optimizer_state(self.optimizer, root_rank=0)

    def fit(
        self,
        batches: Callable[[int], Iterable[Any]],
        loss_of: Callable[[Any], torch.Tensor],
        validate: Callable[[], dict[str, float]],
    ) -> None:
        """Train for the epochs asked for; report on rank 0.

        Args:
            batches: training batches of this worker in epoch number n, counted from 0.
            loss_of: mean loss of one batch.
            validate: figures over the validation data of all workers, by name.
        """
        passes = self.args.batches_per_allreduce
        with self.job as job:
            for epoch in range(self.args.epochs):
                losses: list[float] = []
                self.model.train()
                job.begin_epoch()
                whole_steps = islice(batches(epoch), job.steps_per_epoch * passes)
                for number, batch in enumerate(whole_steps, 1):
                    loss = loss_of(batch)
                    (loss / passes).backward()
                    losses.append(loss.item())
                    if number % passes == 0:
                        self._step()
                        job.end_step()
                self.model.eval()
                with torch.no_grad():
                    figures = validate()
                job.end_epoch(average(statistics.fmean(losses), len(losses)), figures)
            job.end()

    def _step(self) -> None:
        """Exchange and clip the gradients, update the weights, clear the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.job.learning_rate()
        clip_norm = self.job.clip_norm_after_exchange()
        if clip_norm is None:
            self.optimizer.step()
        else:
            self.optimizer.synchronize()
            torch.nn.utils.clip_grad_norm_(self.parameters, clip_norm)
            with self.optimizer.skip_synchronize():
                self.optimizer.step()
        self.optimizer.zero_grad()
