"""Test each module of ChatWait by itself, without a server."""
