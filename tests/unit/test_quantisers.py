"""The quantisers among the value coders against their formulas in NumPy, and what is said of their randomness."""

import math

import numpy as np
import pytest

from horovod_dgc import _core as core

K = 5003
STOCHASTIC = [
    "qsgd:2:512",
    "qsgd:4:512",
    "qsgd:8:512",
    "dorefa:1",
    "dorefa:2",
    "dorefa:3",
    "dorefa:4",
    "dorefa:8",
    "natural",
]
NAMES = [*STOCHASTIC, "sign", "meansign", "onebit:100", "onebitcolumns:100", "ternary", "power4"]


def normal(k=K, seed=0):
    return np.random.default_rng(seed).standard_normal(k).astype(np.float32)


def randomness(seed=1, tensor=2, step=3, rank=4):
    return core.Randomness(seed, tensor, step, rank)


def sent(name, values, *arguments, **keywords):
    return core.ValueCoder(name).encode(values, *arguments, **keywords)[1]


def sizes(size, count):
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


def ceil(a, b):
    return -(-a // b)


@pytest.mark.parametrize("k", [1, 7, 8, 9, 511, 512, 513, 1000])
@pytest.mark.parametrize(
    ("name", "nbytes"),
    [
        ("sign", lambda k: 4 + ceil(k, 8)),
        ("meansign", lambda k: 4 + ceil(k, 8)),
        ("onebit:100", lambda k: 8 * ceil(k, 100) + ceil(k, 8)),
        ("onebitcolumns:100", lambda k: 8 * min(k, 100) + ceil(k, 8)),
        ("qsgd:2:512", lambda k: 4 * ceil(k, 512) + ceil(2 * k, 8)),
        ("qsgd:4:512", lambda k: 4 * ceil(k, 512) + ceil(4 * k, 8)),
        ("qsgd:8:64", lambda k: 4 * ceil(k, 64) + k),
        ("ternary", lambda k: 8 + ceil(k, 5)),
        ("dorefa:3", lambda k: 4 + ceil(3 * k, 8)),
        ("natural", lambda k: ceil(k, 8) + k),
        ("power4", lambda k: 4 + ceil(k, 2)),
    ],
)
def test_length(name, nbytes, k):
    coder = core.ValueCoder(name)
    assert coder.nbytes(k) == nbytes(k) == coder.encode(normal(k))[0].size
    assert coder.nbytes(0) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 100, K, 200000])
def test_sent_is_what_decoding_gives_and_does_not_depend_on_threads(name, k):
    coder = core.ValueCoder(name)
    coded, values = coder.encode(normal(k), randomness())
    np.testing.assert_array_equal(coder.decode(coded, k), values)
    again, same = coder.encode(normal(k), randomness(), threads=3)
    np.testing.assert_array_equal(again, coded)
    np.testing.assert_array_equal(same, values)


def test_sign():
    values = normal()
    values[::10] = 0
    np.testing.assert_array_equal(sent("sign", values), np.where(values >= 0, 1, -1))


def test_meansign():
    values = normal()
    mean = np.float32(np.abs(values, dtype=np.float64).mean())
    np.testing.assert_allclose(sent("meansign", values), np.where(values >= 0, mean, -mean), rtol=2e-7)


def means_of_signs(x):
    x = x.astype(np.float64)
    return np.where(x >= 0, x[x >= 0].mean() if (x >= 0).any() else 0, x[x < 0].mean() if (x < 0).any() else 0)


@pytest.mark.parametrize("size", [1, 3, 100, 5000, 10000])
def test_onebit(size):
    values = normal()
    expected = np.concatenate([means_of_signs(values[part]) for part in sizes(size, K)])
    np.testing.assert_allclose(sent(f"onebit:{size}", values), expected, rtol=2e-7)


@pytest.mark.parametrize("columns", [1, 3, 100, 1000, 10000])
def test_onebitcolumns(columns):
    values = normal()
    expected = np.empty(K)
    for column in range(min(columns, K)):
        expected[column::columns] = means_of_signs(values[column::columns])
    np.testing.assert_allclose(sent(f"onebitcolumns:{columns}", values), expected, rtol=2e-7)


def test_ternary():
    values = normal()
    values[::3] = 0
    above, below = (values[side].mean(dtype=np.float64) for side in (values > 0, values < 0))
    expected = np.where(values > 0, above, np.where(values < 0, below, 0))
    np.testing.assert_allclose(sent("ternary", values), expected, rtol=2e-7)


def test_ternary_keeps_three_values_as_they_are():
    values = np.random.default_rng(1).choice(np.array([0.1, -0.3, 0], np.float32), K)
    np.testing.assert_array_equal(sent("ternary", values), values)


def test_power4():
    values = np.concatenate([normal(), normal() * np.float32(1e-3), np.float32([0, 1.5, 0.75, 3, -6, 1 / 128])])
    top = math.floor(math.log2(np.abs(values).max()))
    powers = 2.0 ** np.arange(top, top - 7, -1)
    magnitudes = np.abs(values.astype(np.float64))[:, None]
    # The nearest of these powers and of the next smaller one, which stands for zero; ties to the larger.
    nearest = np.abs(magnitudes - np.append(powers, powers[-1] / 2)).argmin(axis=1)
    expected = np.sign(values) * np.append(powers, 0)[nearest]
    np.testing.assert_array_equal(sent("power4", values), expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("bucket", [1, 100, 512, 10000])
def test_qsgd_rounds_to_a_neighbouring_level(bits, bucket):
    values, levels = normal(), 2 ** (bits - 1) - 1
    got = sent(f"qsgd:{bits}:{bucket}", values, randomness())
    for part in sizes(bucket, K):
        norm = np.float32(np.linalg.norm(values[part].astype(np.float64)))
        level = got[part] / norm * levels
        np.testing.assert_allclose(level, np.round(level), atol=1e-4)
        assert (np.abs(level - values[part] / norm * levels) <= 1 + 1e-4).all()
        assert (level * values[part] >= 0).all()


@pytest.mark.parametrize("bits", range(1, 9))
def test_dorefa_rounds_to_a_neighbouring_step(bits):
    values, steps = normal(), 2**bits - 1
    largest = np.abs(values).max()
    got = sent(f"dorefa:{bits}", values, randomness())
    code = steps * (got.astype(np.float64) / (2 * largest) + 0.5)
    np.testing.assert_allclose(code, np.round(code), atol=1e-4)
    assert (np.round(code) >= 0).all() and (np.round(code) <= steps).all()
    # |round(t + n) - t| <= 1 for n of at most half a step.
    assert (np.abs(np.round(code) - steps * (values / (2 * largest) + 0.5)) <= 1 + 1e-4).all()
    np.testing.assert_array_equal(got[np.abs(values) == largest], values[np.abs(values) == largest])


def test_natural_rounds_to_a_neighbouring_power_of_two():
    values = np.concatenate([normal(), normal() * np.float32(1e-30), normal() * np.float32(1e37)])
    got = sent("natural", values, randomness())
    below = 2.0 ** np.floor(np.log2(np.abs(values.astype(np.float64))))
    np.testing.assert_array_equal(np.sign(got), np.sign(values))
    assert ((np.abs(got) == below) | (np.abs(got) == 2 * below)).all()
    subnormal = np.full(1000, 2.0**-127, np.float32)
    assert set(sent("natural", subnormal, randomness())) == {0, 2.0**-126}


def keyed(name, values, keys):
    """[keys, k]: what is sent of the same values in as many steps."""
    coder = core.ValueCoder(name)
    return np.stack([coder.encode(values, randomness(step=step))[1] for step in range(keys)]).astype(np.float64)


def roundings(name, values):
    """How far apart the two values are that each can become, and the probability of the one that is further from 0
    (dorefa: of the larger)."""
    family, *numbers = name.split(":")
    x = np.abs(values.astype(np.float64))
    if family == "natural":
        width = 2.0 ** np.floor(np.log2(x))
    elif family == "qsgd":
        width = np.linalg.norm(x) / (2 ** (int(numbers[0]) - 1) - 1)
    else:
        width = 2 * x.max() / (2 ** int(numbers[0]) - 1)
        x = values + x.max()
    return width, np.clip(x / width % 1, 1e-9, 1 - 1e-9)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_expectation_is_the_value(name):
    """Means over 2,000 steps, in standard errors of the distribution that the formula gives.

    Of each value (300, less those that are rounded one way fewer than 20 times, which are not normal): all within 5,
    which is so with a probability of 99.98 %. Their mean square: 1, within 5 of its own standard errors. The sum of
    all values: within 5.
    """
    keys, values = 2000, normal(300, 5)
    draws = keyed(name, values, keys)
    width, probability = roundings(name, values)
    error = width * np.sqrt(probability * (1 - probability) / keys)
    bias = draws.mean(axis=0) - values
    common = keys * np.minimum(probability, 1 - probability) > 20
    assert common.sum() > 200
    scaled = (bias / error)[common]
    assert np.abs(scaled).max() < 5
    assert abs((scaled**2).mean() - 1) < 5 * math.sqrt(2 / scaled.size)
    assert abs(bias.sum()) < 5 * np.sqrt((error**2).sum())


def test_subnormal_values_are_rounded_without_bias():
    values = np.full(20000, 0.3 * 2.0**-126, np.float32)
    up = (sent("natural", values, randomness()) > 0).mean()
    assert abs(up - 0.3) < 5 * math.sqrt(0.3 * 0.7 / values.size)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_reproducible_by_key_and_different_by_any_part_of_it(name):
    values = normal()
    once = sent(name, values, randomness())
    np.testing.assert_array_equal(sent(name, values, randomness()), once)
    for other in ({"seed": 9}, {"tensor": 9}, {"step": 9}, {"rank": 9}):
        assert (sent(name, values, randomness(**other)) != once).any()


@pytest.mark.parametrize("name", STOCHASTIC)
def test_rounding_errors_of_ranks_tensors_and_steps_are_uncorrelated(name):
    """Correlation coefficients of 100,000 pairs within 5 standard errors; neighbours in the array as well."""
    # Equal values within a group, so that all errors are draws of one distribution.
    values = np.full(100000, 0.3, np.float32)
    values[::512] = 1
    body = values != 1
    one = (sent(name, values, randomness()) - values)[body]
    limit = 5 / math.sqrt(one.size)
    for other in ({"seed": 9}, {"tensor": 9}, {"step": 4}, {"rank": 5}):
        two = (sent(name, values, randomness(**other)) - values)[body]
        assert abs(np.corrcoef(one, two)[0, 1]) < limit
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < limit


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [1, 1000])
def test_zero_gives_zero(name, k):
    np.testing.assert_array_equal(sent(name, np.zeros(k, np.float32)), np.full(k, name == "sign", np.float32))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-37, 1e-30, 1e30, 3e38])
def test_extreme_values_stay_finite(name, scale):
    got = sent(name, np.clip(normal(), -1, 1) * np.float32(scale))
    assert np.isfinite(got).all()
    if scale >= 1e-37 and name != "sign":
        assert np.abs(got).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_told(name, bad):
    for at in (0, 50):
        values = normal()
        values[at] = bad
        got = sent(name, values)
        assert np.isnan(got[at])
        assert name in ("natural", "onebitcolumns:100") or np.isnan(got[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qsgd:3:512", "B of qsgd:B:S is 3; allowed: 2, 4, 8"),
        ("qsgd:4:0", "S of qsgd:B:S is 0; allowed: at least 1"),
        ("dorefa:9", "B of dorefa:B is 9; allowed: 1 to 8"),
        ("onebit:0", "G of onebit:G is 0; allowed: at least 1"),
        ("onebitcolumns:0", "C of onebitcolumns:C is 0; allowed: at least 1"),
        ("qsgd:4", "value coder is 'qsgd:4'; allowed: .*qsgd:N:N"),
    ],
)
def test_names_are_checked(name, message):
    with pytest.raises(ValueError, match=message):
        core.ValueCoder(name)


def test_malformed_bytes_are_refused():
    for name, at, byte, message in [
        ("meansign", 3, 0xBF, "number 0 of the header is -"),
        ("sign", 3, 0x40, "the header is 4.*, allowed: 1 or NaN"),
        ("sign", 5, 0xFF, "unused bits"),
        ("ternary", 9, 243, "not five trits"),
        ("power4", 5, 0xF7, "a code is 15"),
    ]:
        coder = core.ValueCoder(name)
        coded, _ = coder.encode(normal(9))
        coded[at] = byte
        with pytest.raises(ValueError, match=message):
            coder.decode(coded, 9)
