"""Parameter shapes of the models whose traffic the DGC paper publishes, for :func:`horovod_dgc.traffic`."""

from __future__ import annotations

from collections.abc import Callable

Shapes = dict[str, tuple[int, ...]]


def resnet50() -> Shapes:
    """ResNet-50 for ImageNet: 25,502,912 elements in 54 weight tensors, 54,120 in 107 others."""
    shapes: Shapes = {"conv1.weight": (64, 3, 7, 7), **_norm("bn1", 64)}
    channels = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            shapes[f"{prefix}.conv1.weight"] = (width, channels, 1, 1)
            shapes[f"{prefix}.conv2.weight"] = (width, width, 3, 3)
            shapes[f"{prefix}.conv3.weight"] = (4 * width, width, 1, 1)
            shapes |= _norm(f"{prefix}.bn1", width) | _norm(f"{prefix}.bn2", width)
            shapes |= _norm(f"{prefix}.bn3", 4 * width)
            if block == 0:
                shapes[f"{prefix}.downsample.0.weight"] = (4 * width, channels, 1, 1)
                shapes |= _norm(f"{prefix}.downsample.1", 4 * width)
            channels = 4 * width
    return {**shapes, "fc.weight": (1000, 2048), "fc.bias": (1000,)}


def alexnet() -> Shapes:
    """AlexNet with its two columns as convolution groups: 60,954,656 elements in weights, 10,568 in biases."""
    weights = {
        "conv1": (96, 3, 11, 11),
        "conv2": (256, 48, 5, 5),
        "conv3": (384, 256, 3, 3),
        "conv4": (384, 192, 3, 3),
        "conv5": (256, 192, 3, 3),
        "fc6": (4096, 9216),
        "fc7": (4096, 4096),
        "fc8": (1000, 4096),
    }
    shapes: Shapes = {}
    for name, shape in weights.items():
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]
    return shapes


def ptb_lstm() -> Shapes:
    """Two LSTM layers of 1500 units on a vocabulary of 10,000, embedding and softmax weights tied."""
    shapes: Shapes = {"embedding.weight": (10_000, 1500), "softmax.bias": (10_000,)}
    for layer in range(2):
        for source in ("ih", "hh"):
            shapes[f"lstm.weight_{source}_l{layer}"] = (4 * 1500, 1500)
            shapes[f"lstm.bias_{source}_l{layer}"] = (4 * 1500,)
    return shapes


def deepspeech() -> Shapes:
    """Two convolutions and seven bidirectional GRU layers of 1200 units without biases, directions summed.

    The paper gives only the layers, the units, and 488.08 MB; these shapes are a reconstruction that comes to
    488.2 million bytes.
    """
    shapes: Shapes = {"conv1.weight": (32, 1, 41, 11), "conv2.weight": (32, 32, 21, 11)}
    shapes |= _norm("bn1", 32) | _norm("bn2", 32)
    for layer in range(7):
        inputs = 1312 if layer == 0 else 1200
        if layer:
            shapes |= _norm(f"gru{layer}.bn", 1200)
        for direction in ("", "_reverse"):
            shapes[f"gru{layer}.weight_ih{direction}"] = (3 * 1200, inputs)
            shapes[f"gru{layer}.weight_hh{direction}"] = (3 * 1200, 1200)
    return {**shapes, **_norm("bn", 1200), "fc.weight": (29, 1200)}


MODELS: dict[str, Callable[[], Shapes]] = {
    "ResNet-50": resnet50,
    "AlexNet": alexnet,
    "2 x 1500 LSTM": ptb_lstm,
    "DeepSpeech": deepspeech,
}


def _norm(prefix: str, channels: int) -> Shapes:
    return {f"{prefix}.weight": (channels,), f"{prefix}.bias": (channels,)}
