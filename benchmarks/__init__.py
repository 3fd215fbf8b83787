"""Measurements of the lab against its goals and its peers; `python -m benchmarks` runs them (docs/results/benchmarks.md)."""
