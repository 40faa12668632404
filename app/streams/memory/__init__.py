"""Logs of one process, in its memory."""
