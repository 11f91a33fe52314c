"""Parameter shapes of well-known models, for :func:`horovod_dgc.traffic` and ``horovod-dgc plan``."""

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
    weights: Shapes = {
        "conv1": (96, 3, 11, 11),
        "conv2": (256, 48, 5, 5),
        "conv3": (384, 256, 3, 3),
        "conv4": (384, 192, 3, 3),
        "conv5": (256, 192, 3, 3),
        "fc6": (4096, 9216),
        "fc7": (4096, 4096),
        "fc8": (1000, 4096),
    }
    return _with_biases(weights)


def alexnet_one_column() -> Shapes:
    """AlexNet without columns, as torchvision has it: 61,100,840 elements (Krizhevsky 2014, arXiv 1404.5997)."""
    weights: Shapes = {
        "features.0": (64, 3, 11, 11),
        "features.3": (192, 64, 5, 5),
        "features.6": (384, 192, 3, 3),
        "features.8": (256, 384, 3, 3),
        "features.10": (256, 256, 3, 3),
        "classifier.1": (4096, 9216),
        "classifier.4": (4096, 4096),
        "classifier.6": (1000, 4096),
    }
    return _with_biases(weights)


def vgg16() -> Shapes:
    """VGG-16, configuration D of Simonyan and Zisserman, ICLR 2015, arXiv 1409.1556: 138,357,544 elements."""
    weights: Shapes = {}
    channels = 3
    for block, (layers, width) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), start=1):
        for layer in range(1, layers + 1):
            weights[f"conv{block}_{layer}"] = (width, channels, 3, 3)
            channels = width
    return _with_biases({**weights, "fc6": (4096, 7 * 7 * 512), "fc7": (4096, 4096), "fc8": (1000, 4096)})


def ptb_lstm() -> Shapes:
    """Two LSTM layers of 1500 units on a vocabulary of 10,000, embedding and softmax weights tied."""
    shapes: Shapes = {"embedding.weight": (10_000, 1500), "softmax.bias": (10_000,)}
    for layer in range(2):
        for source in ("ih", "hh"):
            shapes[f"lstm.weight_{source}_l{layer}"] = (4 * 1500, 1500)
            shapes[f"lstm.bias_{source}_l{layer}"] = (4 * 1500,)
    return shapes


def ptb_lstm_untied() -> Shapes:
    """The same with softmax weights of its own: 66,034,000 elements, the "large" LSTM of Zaremba et al. 2014.

    arXiv 1409.2329. The size that the DGC paper prints, 194.68 MB, is that of the tied one.
    """
    return {**ptb_lstm(), "softmax.weight": (10_000, 1500)}


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


# Those whose traffic the DGC paper publishes.
MODELS: dict[str, Callable[[], Shapes]] = {
    "ResNet-50": resnet50,
    "AlexNet": alexnet,
    "2 x 1500 LSTM": ptb_lstm,
    "DeepSpeech": deepspeech,
}

# By the names that a command line takes.
NAMED: dict[str, Callable[[], Shapes]] = {
    "resnet50": resnet50,
    "alexnet": alexnet_one_column,
    "alexnet-two-columns": alexnet,
    "vgg16": vgg16,
    "lstm-ptb": ptb_lstm,
    "lstm-ptb-untied": ptb_lstm_untied,
    "deepspeech": deepspeech,
}


def _with_biases(weights: Shapes) -> Shapes:
    """Each layer's weight, and a bias for each of its output units."""
    shapes: Shapes = {}
    for name, shape in weights.items():
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]
    return shapes


def _norm(prefix: str, channels: int) -> Shapes:
    return {f"{prefix}.weight": (channels,), f"{prefix}.bias": (channels,)}
