"""Compiling for this machine: the package's extensions, what finds them afterwards, and progress on the terminal."""
