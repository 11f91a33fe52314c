"""Second moments of the gradient over samples, against the gradients of the samples one by one."""

import pytest
import torch
from torch import nn

pytest.importorskip("horovod.torch")
from horovod_dgc.torch import SecondMoments


def one_by_one(model: nn.Module, loss_of, samples: list) -> dict[str, torch.Tensor]:
    """Sum of squares of the weights' gradients, each from a backward pass of its own."""
    sums: dict[str, torch.Tensor] = {}
    for sample in samples:
        model.zero_grad()
        loss_of(model(sample.unsqueeze(0))).backward()
        for name, p in model.named_parameters():
            if p.dim() > 1:
                sums[name] = sums.get(name, 0) + p.grad.square() / len(samples) ** 2
    model.zero_grad()
    return sums


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)), (20, 7)),
    "linear over time": (lambda: nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)), (20, 4, 7)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False),
            nn.Flatten(),
            nn.Linear(54, 3),
        ),
        (18, 2, 8, 8),
    ),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3, dilation=2), nn.Flatten(), nn.Linear(18, 2)),
        (5, 2, 10),
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_exact_moments_are_those_of_the_samples(kind: str) -> None:
    torch.manual_seed(1)
    build, shape = MODELS[kind]
    model, inputs = build(), torch.randn(shape)
    expected = one_by_one(model, lambda y: y.square().sum(), list(inputs))
    moments = SecondMoments(model)
    (model(inputs).square().sum() / len(inputs)).backward()
    for name, p in model.named_parameters():
        if p.dim() > 1:
            torch.testing.assert_close(moments.take(p), expected[name].reshape(-1))
            assert moments.take(p) is None


def test_exact_moments_of_an_embedding() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(9, 4, padding_idx=2), nn.Flatten(), nn.Linear(12, 2))
    words = torch.randint(0, 9, (20, 3))
    words[0] = 5  # a word that occurs several times in one sample
    expected = one_by_one(model, lambda y: y.square().sum(), list(words))
    moments = SecondMoments(model)
    (model(words).square().sum() / len(words)).backward()
    for name in ("0.weight", "2.weight"):
        torch.testing.assert_close(moments.take(model.get_parameter(name)), expected[name].reshape(-1))


def test_samples_along_another_axis() -> None:
    torch.manual_seed(1)
    model, inputs = nn.Linear(7, 5), torch.randn(20, 4, 7)
    expected = one_by_one(model, lambda y: y.square().sum(), list(inputs))
    moments = SecondMoments(model, batch_axis=1)
    (model(inputs.transpose(0, 1)).square().sum() / 20).backward()
    torch.testing.assert_close(moments.take(model.weight), expected["weight"].reshape(-1))


def test_micro_batches_count_each_backward_pass() -> None:
    torch.manual_seed(1)
    model = nn.LSTM(3, 4)
    moments = SecondMoments(model, samples="micro-batches")
    expected = 0
    for _ in range(3):
        model.zero_grad()
        model(torch.randn(5, 2, 3))[0].square().sum().backward()
        expected = expected + model.weight_ih_l0.grad.square()
    torch.testing.assert_close(moments.take(model.weight_ih_l0), expected.reshape(-1))


def test_refuses_what_it_cannot_look_into() -> None:
    with pytest.raises(ValueError, match=r'"micro-batches" for this model: weights of weight_hh_l0, weight_ih_l0'):
        SecondMoments(nn.LSTM(3, 4))
    with pytest.raises(ValueError, match="samples must be one of 'exact', 'micro-batches', got 'exakt'"):
        SecondMoments(nn.Linear(3, 4), samples="exakt")
