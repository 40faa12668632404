"""Faults made on purpose, and a runner that names those which the quick tests do not notice: `make mutants`."""
