"""Measurements of speed: `python -m benchmarks NAME …`; they are reported, never asserted."""
