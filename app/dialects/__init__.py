"""Dialects: how logs and failures look on the wire, one folder for each. Pure: no network, no clock, no Flask."""
