"""Test ChatWait from the outside, over real sockets."""
