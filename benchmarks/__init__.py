"""Speed, beside other libraries in the same run; see docs/benchmarks.md. `python -m benchmarks` from the root."""
