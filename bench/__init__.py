"""Benchmarks: cases, our engines and their peers side by side, the machine's limits, and a page of the results."""
