"""What gunicorn serves: `gunicorn wsgi:app` (gunicorn.conf.py beside it is read by itself)."""

from app import create_app

app = create_app()
