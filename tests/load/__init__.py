"""Tests of the load suite: that it notices what it is there to notice."""
