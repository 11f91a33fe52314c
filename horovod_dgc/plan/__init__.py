"""``horovod-dgc plan``: what a cluster would gain from each method, before it is bought or booked."""
