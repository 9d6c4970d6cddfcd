"""Benchmarks in the layouts people have them in, folders of one's own, their checks and conversions."""
