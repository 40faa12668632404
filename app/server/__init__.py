"""All that knows gunicorn: heads and bodies of requests, and connections. Nothing here knows Flask."""
