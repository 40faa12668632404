"""Measure the service under load: `python -m load`, or `make bench`. Must never import the service or its tests."""
