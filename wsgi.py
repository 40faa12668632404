"""What gunicorn serves: `gunicorn wsgi:app`. gunicorn finds gunicorn.conf.py beside this file."""

from app import create_app

app = create_app()
