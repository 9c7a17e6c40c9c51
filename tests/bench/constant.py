"""What reads are compared with: Flask views that return constants, served by the API's own gunicorn configuration."""

from __future__ import annotations

import os

from flask import Flask, Response

SIZES = "CONSTANT_SIZES"  # the variable that says how large they are, separated by commas


def serve() -> Flask:
    """The application: `/1000` is a thousand bytes."""
    app = Flask(__name__, static_folder=None)
    for size in map(int, os.environ[SIZES].split(",")):
        body = b"x" * size
        app.add_url_rule(f"/{size}", str(size), lambda body=body: Response(body, content_type="application/json"))
    return app
