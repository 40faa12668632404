"""Logs that many workers share through Valkey."""
