"""Tests against the real service over real sockets."""
