"""Benchmarks: cases with their FLOPs, the peers, and the comparison (``python -m fastvae.bench``)."""
