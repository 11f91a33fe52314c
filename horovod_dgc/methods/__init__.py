"""The methods, one file each. :mod:`horovod_dgc.registry` lists them by name."""
