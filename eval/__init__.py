"""Benchmarks, sliding-window inference, metrics, pictures and their command lines."""
