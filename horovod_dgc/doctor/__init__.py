"""``horovod-dgc doctor``: what is installed, whether it works together, and the command that mends what does not."""
