"""Performance benchmarks: `python -m benchmarks NAME …`. Results are reported, not asserted."""
