"""What knows gunicorn: heads, bodies and connections of requests. Nothing here knows Flask."""
