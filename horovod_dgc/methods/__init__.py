"""The methods, one file each; :mod:`~horovod_dgc.methods.base` says what a method is, :mod:`horovod_dgc.registry` lists
them by name."""
