"""C++ core of horovod_dgc: selection, coding and the streaming passes, on NumPy arrays.

All arrays are one-dimensional, C-contiguous and in native byte order. State and outputs are float32; gradients and
weights are float32, float16, or uint16 holding bfloat16 bits. Every argument is checked: a ValueError names it, what
it is and what is allowed. Work proportional to a tensor's size runs without the GIL.
"""

import enum
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
_Scalars = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]
_Bytes = NDArray[np.uint8]

def instruction_set() -> str:
    """The one in use, the fastest that this processor runs: "portable", "avx2" or "avx512"."""

class IndexCoder(enum.Enum):
    """How the coordinates of a payload are coded; k == n takes no bytes in any of them."""

    elias_fano = 0
    """About 2 + log2(n / k) bits each (Elias 1974, Fano 1971)."""
    runlength16 = 1
    """A 16-bit run of zeros each, as in the DGC paper (arXiv 1712.01887). Longer runs are bridged by fillers of value
    zero, which take the slots of the smallest of the selected coordinates."""
    int32 = 2
    """32 bits each; n < 2**31."""

class Randomness:
    """What one tensor's random numbers in one step follow from: the same for all ranks but for what is drawn alone.

    All whole numbers in [0, 2**64); ``rank`` counts from 0.
    """

    def __init__(self, seed: int, tensor: int, step: int, rank: int) -> None: ...

class ValueCoder:
    """How the values of a payload are coded: a family's name, and for some families numbers, as in "qsgd:4:512".

    float32, float16, bfloat16: the 16-bit coders round to nearest even, saturate finite values and turn infinities
    into NaN. int8, int4: a float32 scale, max|v| / 127 or max|v| / 7, per chunk of 256 values; a chunk with a value
    that is not finite decodes to NaN throughout.

    The quantisers (formats and sources: csrc/quantisers.h) send a header of float32 numbers and a few bits per value:

    ==================== ============================================== =============================================
    name                 nbytes(k)                                      decoded to
    ==================== ============================================== =============================================
    ``sign``             4 + ceil(k / 8)                                +1 where v >= 0, else -1
    ``meansign``         4 + ceil(k / 8)                                mean of abs(v), with the sign
    ``onebit:G``         8 * ceil(k / G) + ceil(k / 8)                  mean of the values of the sign in a group of G
    ``onebitcolumns:C``  8 * min(k, C) + ceil(k / 8)                    the same; the group of value i is i mod C
    ``ternary``          8 + ceil(k / 5)                                mean of the values of the sign; 0 stays 0
    ``qsgd:B:S``         4 * ceil(k / S) + ceil(B * k / 8)              multiples of norm / (2^(B-1) - 1) of a bucket
                                                                        of S values, at random; B: 2, 4, 8
    ``dorefa:B``         4 + ceil(B * k / 8)                            2^B steps from -max|v| to max|v|, at random;
                                                                        B: 1 to 8
    ``natural``          k + ceil(k / 8)                                powers of two, at random
    ``power4``           4 + ceil(k / 2)                                0 or the nearest of the 7 powers of two up to
                                                                        max|v|
    ==================== ============================================== =============================================

    What is rounded at random has the value as its expectation. Where a value is not finite, all that share a number
    of the header with it decode to NaN, in natural it alone. A header number that would be subnormal is 0, and its
    values decode to 0.
    """

    def __init__(self, name: str) -> None: ...
    @property
    def name(self) -> str: ...
    def nbytes(self, k: int) -> int:
        """Bytes of k coded values; depends on nothing else."""
    def encode(self, values: _Floats, randomness: Randomness = ..., threads: int = 1) -> tuple[_Bytes, _Floats]:
        """(bytes[nbytes(k)], sent[k]) of k values; sent = what decoding gives. Rounds at random where the coder does,
        by the rank's own stream of ``randomness``."""
    def decode(self, bytes: _Bytes, k: int) -> _Floats:
        """The k values, after checking the bytes."""
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...

class Layout:
    """The payload of one tensor: values first, then indices, no header.

    n elements, 0 <= n < 2**32 (int32 indices: 2**31), of which exactly k are sent, 1 <= k <= n (n == 0: k == 0).
    runlength16 also needs k >= ceil(n / 65536), unless k == n.
    """

    def __init__(self, n: int, k: int, indices: IndexCoder, values: ValueCoder) -> None: ...
    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def indices(self) -> IndexCoder: ...
    @property
    def values(self) -> ValueCoder: ...
    @property
    def nbytes(self) -> int:
        """Length of the payload; depends on nothing but the four arguments."""
    def pack(
        self, indices: NDArray[np.uint32], values: _Floats, randomness: Randomness = ...
    ) -> tuple[_Bytes, _Floats]:
        """(payload[nbytes], sent[k]) of k strictly increasing indices; sent = what decoding adds at each of them."""
    def unpack(self, payload: _Bytes) -> tuple[NDArray[np.uint32], _Floats]:
        """(indices[k], values[k]) of a payload, which is validated first."""
    def validate(self, payloads: _Bytes) -> None:
        """ValueError saying which payload is malformed and how. Shape (N, nbytes) or (N * nbytes,)."""
    def decode_add(self, payloads: _Bytes, out: _Floats, scale: float = 1.0, threads: int = 1) -> None:
        """out[i] += scale * value for every coordinate of every payload, in payload order at each coordinate.

        Validates first and writes nothing if a payload is malformed. payloads: (N, nbytes) or (N * nbytes,);
        out: [n]. The result does not depend on threads.
        """
    def poison(self) -> _Bytes:
        """A valid payload whose first k coordinates hold NaN."""
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...

class Update:
    """The arithmetic of one step, with g the gradient, w the weights, u the velocity, v the residual::

        ghat = unscale * g + weight_decay * w
        u'   = momentum * u + (1 - dampening) * ghat       subnormal u' becomes 0
        v'   = v + u'                                      with velocity
        v'   = v + (ghat + momentum * u')                  with velocity, Nesterov
        v'   = v + ghat                                    without velocity

    All finite as float32; momentum and weight_decay not negative.
    """

    def __init__(
        self,
        unscale: float = 1.0,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
    ) -> None: ...
    @property
    def unscale(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def dampening(self) -> float: ...
    @property
    def nesterov(self) -> bool: ...

class Codec:
    """From one tensor's accumulated gradient v' to a payload, and from all workers' payloads to their sum.

    Made from a description: a kind and its settings, such as "coordinates n=1000 k=10 indices=elias-fano
    values=float16 select=largest" (csrc/kinds.cc lists them), or from a layout, for its k largest coordinates.
    """

    def __init__(self, description: str | Layout) -> None: ...
    @property
    def description(self) -> str: ...
    @property
    def n(self) -> int: ...
    @property
    def nbytes(self) -> int:
        """Length of a payload."""
    @property
    def sent(self) -> int:
        """Coordinates that one payload gives values to."""
    @property
    def summable(self) -> str | None:
        """dtype of the numbers that payloads consist of, where the sum of payloads is the payload of the sum."""
    @property
    def opening(self) -> tuple[int, Literal["sum", "maximum", "quantile"]]:
        """Floats that a tensor contributes before it is encoded (0: none), and what is made of them: "sum" or "maximum"
        over the workers, or by :func:`opened_by_quantile` over the tensors of a worker."""
    @property
    def memory(self) -> int:
        """Floats that a worker keeps for the codec between steps."""
    @property
    def wants_squares(self) -> bool: ...
    @property
    def votes(self) -> bool:
        """Whether the sum of payloads is to be replaced by its sign."""
    @property
    def layout(self) -> Layout | None:
        """The layout, if what is sent are simply the coordinates of largest |v'|, or all."""
    def validate(self, payloads: _Bytes) -> None:
        """ValueError saying which payload is malformed and how. Shape (N, nbytes) or (N * nbytes,)."""
    def decode_add(
        self,
        payloads: _Bytes,
        out: _Floats,
        scale: float = 1.0,
        threads: int = 1,
        *,
        randomness: Randomness = ...,
        opened: _Floats | None = None,
    ) -> None:
        """out[n] += scale * the sum of the payloads, in payload order at each coordinate.

        Validates first and writes nothing if a payload is malformed. payloads: (N, nbytes) or (N * nbytes,).
        """
    def decode_votes(self, payloads: _Bytes, out: _Floats, scale: float = 1.0, threads: int = 1) -> None:
        """out[n] += scale * :func:`vote` of the sum of the payloads; for a codec that votes."""
    @property
    def parts(self) -> int:
        """Number of parts of equal length that a payload consists of, one for each worker; 0 if it has none."""
    def reduce(self, part: int, received: _Bytes, randomness: Randomness = ...) -> tuple[_Bytes, int, _Floats]:
        """What the worker of a part makes of the parts that N workers have sent it.

        received: (N, nbytes / parts) or flat. Returns that part of a payload of the sum, which holds its largest
        coordinates; the first coordinate of the part; and what found no room there, for the worker's residual. If the
        sum is not finite, the part is that of poison(), and nothing is returned but zeros.
        """
    def absorb(self, payloads: _Bytes, memory: _Floats) -> None:
        """What memory[memory] becomes when all workers' payloads, or their sum as one, have come back."""
    def poison(self) -> _Bytes:
        """A valid payload that decodes to NaN: of a gradient that is not finite."""
    def poisoned(self, payloads: _Bytes) -> bool:
        """Whether a worker's gradient was not finite, judging by all payloads: one of them is poison()."""

class Proposal:
    """What a step would send and what it would leave behind; made by propose and encode."""

    @property
    def payload(self) -> _Bytes:
        """[nbytes]; a view that keeps the proposal alive. Equal to the codec's poison() if not finite."""
    @property
    def finite(self) -> bool:
        """Whether v' is finite everywhere."""
    @property
    def indices(self) -> NDArray[np.uint32]:
        """[sent], strictly increasing: the coordinates; of largest |v'|, ties go to the lower index."""
    @property
    def sent(self) -> _Floats:
        """[sent]: what decoding the payload adds at these coordinates; NaN if not finite."""
    @property
    def overflow(self) -> int:
        """Coordinates that qualified but found no room."""
    @property
    def nonzero(self) -> int:
        """Coordinates sent with a value other than 0, NaN included."""
    def commit(
        self,
        update: Update,
        grad: _Scalars,
        residual: _Floats | None,
        velocity: _Floats | None = None,
        weights: _Scalars | None = None,
        *,
        memory: _Floats | None = None,
        squares: _Floats | None = None,
        mask_velocity: bool = True,
        zero_grad: bool = False,
        threads: int = 1,
    ) -> None:
        """Applies the step to the arrays it was proposed from: velocity = u', residual = v' - sent.

        mask_velocity: velocity = 0 where something was sent, if not all is (momentum factor masking). zero_grad:
        leaves the gradient zeroed. ValueError, and nothing changed, if the proposal is not finite.
        """
    def masked(self, out: _Floats) -> None:
        """out[n] = 0, then sent at the coordinates: the dense form for an allreduce."""

def open(
    codec: Codec | Layout,
    update: Update,
    grad: _Scalars,
    residual: _Floats | None = None,
    velocity: _Floats | None = None,
    weights: _Scalars | None = None,
    *,
    randomness: Randomness = ...,
    memory: _Floats | None = None,
    threads: int = 1,
) -> tuple[bool, _Floats]:
    """(whether v' is finite, this worker's part of the opening round: float32, [opening[0]], NaN if it is not)."""

def opened_by_quantile(codecs: Sequence[Codec], openings: Sequence[_Floats]) -> float:
    """The magnitude that the share given to the first codec reach, of all elements of one worker's tensors.

    openings: what :func:`open` made for each tensor. NaN if there is one among them.
    """

def propose(
    codec: Codec | Layout,
    update: Update,
    grad: _Scalars,
    residual: _Floats | None = None,
    velocity: _Floats | None = None,
    weights: _Scalars | None = None,
    *,
    randomness: Randomness = ...,
    opened: _Floats | None = None,
    memory: _Floats | None = None,
    squares: _Floats | None = None,
    sample_ratio: float = 0.01,
    threads: int = 1,
) -> Proposal:
    """What the codec makes of v'. Reads the arrays, writes none of them.

    grad, residual (None: nothing is kept), velocity (None: no momentum correction) and weights (exactly where
    weight_decay is not 0): [n]. opened: what came back from the opening round. memory: the codec's. squares: [n],
    second moments of this step's gradient where the codec uses them; None for its squares. sample_ratio: share of
    elements sampled for a threshold estimate, in (0, 1]; it and threads affect speed only.
    """

def encode(
    codec: Codec | Layout,
    update: Update,
    grad: _Scalars,
    residual: _Floats | None = None,
    velocity: _Floats | None = None,
    weights: _Scalars | None = None,
    *,
    randomness: Randomness = ...,
    opened: _Floats | None = None,
    memory: _Floats | None = None,
    squares: _Floats | None = None,
    mask_velocity: bool = True,
    zero_grad: bool = False,
    sample_ratio: float = 0.01,
    threads: int = 1,
) -> Proposal:
    """propose and commit, where possible in one pass over memory, with the same results.

    A gradient that is not finite leaves the state untouched.
    """

def sum_squares(x: _Scalars, threads: int = 1) -> float:
    """Sum of squares, accumulated in double; infinite or NaN if x is not finite. Does not depend on threads."""

def sum_poisoned(sum: _Scalars) -> bool:
    """Whether a worker's gradient was not finite, judging by the sum of payloads or of their dense forms: some value of
    it is not. For payloads one by one, see :meth:`Codec.poisoned`."""

def vote(sums: _Floats) -> None:
    """What majority vote makes of sums of signs, in place: 1, -1, or 0 for a tie; NaN where a sum is not finite."""

def apply_momentum(aggregated: _Floats, velocity: _Floats, update: Update) -> None:
    """Momentum of a tensor that is not sparsified, in place: velocity = u', aggregated = the step (as in Update).

    Uses update.momentum, dampening and nesterov only.
    """
