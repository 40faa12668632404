"""Reading a log for a client, in any dialect: live, waiting for the end, or as one whole body."""
