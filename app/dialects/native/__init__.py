"""ChatWait's own dialect, as contracts/ describes it."""
