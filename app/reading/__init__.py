"""The loop that reads a log for one client. It knows no dialect."""
