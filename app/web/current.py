"""The worker that an application runs with, for views and for the functions before and after them."""

from __future__ import annotations

from flask import Flask, current_app

from app.worker import Worker

__all__ = ["worker", "worker_of"]


def worker() -> Worker:
    """Return the worker of the current application."""
    return worker_of(current_app)


def worker_of(app: Flask) -> Worker:
    """Return the worker that `create_app` kept with an application."""
    found: Worker = app.extensions["chatwait"]
    return found
