"""Benchmarks of the engine in this process, beside what the machine could do at most."""
