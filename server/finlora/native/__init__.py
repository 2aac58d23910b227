"""Kernels in C, compiled when the package is installed; without them it works, slower."""
