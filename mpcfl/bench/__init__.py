"""Benchmark cells and records."""
