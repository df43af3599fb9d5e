"""The kinds of input that ``benchmarks/fuzz.py`` damages."""
