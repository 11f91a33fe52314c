"""CUDA kernels: the passes of a step on device memory. Built where there is an nvcc.

Addresses and streams are numbers, as ``Tensor.data_ptr()`` and ``Stream.cuda_stream`` give them; 0 stands for an array
that is not there. Nothing is allocated, copied or waited for: builders are told the arrays, tell how many bytes the
tables and the kernels want, write the table to host memory, from which the caller copies it to the device, and launch.
Kernels run one after another on the stream given. RuntimeError: one could not be launched.
"""

from horovod_dgc import _core

progress_words: int
"""int32 that kernels write for each tensor of a :class:`Batch`."""

progress_fields: dict[str, int]
"""Which of them are read, by name: ``nonfinite``, 1 where v' is not finite, else 0; ``nonzero``, the number of
coordinates sent with a value other than 0, of a layout that is not dense."""

def has_format(layout: _core.Layout) -> bool:
    """Whether kernels know the layout: n < 2**31, elias-fano or int32, float32, float16, bfloat16, int8 or int4."""

class Batch:
    """A step of several tensors, as :func:`_core.propose` and :meth:`_core.Proposal.commit` have it for one."""

    def add(
        self,
        layout: _core.Layout,
        update: _core.Update,
        grad: int,
        dtype: str,
        residual: int = 0,
        velocity: int = 0,
        weights: int = 0,
        weights_dtype: str = "float32",
        mask: bool = True,
        zero_grad: bool = False,
    ) -> int:
        """Arrays of layout.n elements; returns the tensor's number. dtypes: float32, float16 or bfloat16.

        ValueError: a layout that kernels do not know, or another dtype.
        """
    def __len__(self) -> int: ...
    @property
    def payload_bytes(self) -> int:
        """Of all payloads, one after another, each from a multiple of 16 on."""
    @property
    def kept_bytes(self) -> int:
        """Of what lies between propose and commit."""
    @property
    def scratch_bytes(self) -> int:
        """Of what propose needs for itself."""
    @property
    def table_bytes(self) -> int: ...
    def payload_offset(self, number: int) -> int: ...
    def payload_nbytes(self, number: int) -> int: ...
    def write(self, table: int, payloads: int, kept: int, progress: int, scratch: int, host: int) -> None:
        """Write the table, with these addresses on the device, to ``host``.

        progress: int32, :data:`progress_words` for each tensor.
        """
    def propose(self, table: int, scratch: int, stream: int) -> None: ...
    def commit(self, table: int, stream: int) -> None: ...
    def scatter_sent(self, number: int, table: int, out: int, stream: int) -> None:
        """What is sent of tensor ``number``, whose layout is not dense, at its coordinates of n floats."""

class Sums:
    """Payloads of several tensors that are added up, as :meth:`_core.Layout.decode_add` has it for one."""

    def add(self, layout: _core.Layout, payloads: int, count: int, out: int, scale: float) -> None: ...
    @property
    def scratch_bytes(self) -> int: ...
    @property
    def table_bytes(self) -> int: ...
    def write(self, scratch: int, host: int) -> None: ...
    def run(self, table: int, malformed: int, stream: int) -> None:
        """malformed: int32, which becomes 1 + number of a tensor with a malformed payload; 0 stays where there is none.

        What of a malformed payload is added is unspecified, but nothing else is touched.
        """

class Reduced:
    """Reduced tensors that become gradients: out = after * momentum(factor * input)."""

    def add(
        self,
        n: int,
        input: int,
        dtype: str,
        out: int,
        velocity: int,
        update: _core.Update,
        factor: float,
        after: float,
    ) -> None:
        """velocity: 0 for no momentum; then nothing of ``update`` counts. out: n floats, which may be the input."""
    @property
    def table_bytes(self) -> int: ...
    def write(self, host: int) -> None: ...
    def run(self, table: int, stream: int) -> None: ...

class Squares:
    """Sums of squares of several arrays, in double precision."""

    def add(self, n: int, data: int, dtype: str) -> None: ...
    @property
    def stripes(self) -> int:
        """Number of partial sums, those of the arrays one after another."""
    @property
    def table_bytes(self) -> int: ...
    def write(self, host: int) -> None: ...
    def run(self, table: int, sums: int, stream: int) -> None: ...
