"""The last rank forgets ``compression=``: the others must end with an error that says so."""

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_dgc import DGC
from horovod_dgc.tensorflow import Compression

hvd.init()
variable = tf.Variable(tf.ones((30, 40)))
optimizer = tf.keras.optimizers.SGD(0.1)
compression = hvd.Compression.none
if hvd.rank() != hvd.size() - 1:
    compression = Compression(DGC(), optimizer, [variable], agreement_timeout=3.0)
with tf.GradientTape() as tape:
    loss = tf.reduce_sum(variable**2)
tape = hvd.DistributedGradientTape(tape, compression=compression)
tape.gradient(loss, [variable])
