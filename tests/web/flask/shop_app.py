"""For gunicorn: a Flask app with logins, whose sessions are in one SQLite file for all web servers."""

from __future__ import annotations

import os
from typing import Any

import flask
import flask_login

from coatcheck import connect
from coatcheck.web.flask import SessionInterface

sessions = connect(os.environ["SESSION_SERVER"], key="m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4", driver="threads")
app = flask.Flask("shop")
app.secret_key = "for Flask-Login"
app.session_interface = SessionInterface(sessions)
logins = flask_login.LoginManager(app)


class User(flask_login.UserMixin):
    def __init__(self, name: str) -> None:
        self.id = name


logins.user_loader(User)


@app.post("/login/<name>")
def login(name: str) -> str:
    flask_login.login_user(User(name))
    return ""


@app.post("/logout")
def logout() -> str:
    flask_login.logout_user()
    return ""


@app.post("/count")
def count() -> dict[str, Any]:
    pair = flask.session.get("pair", (0, "times"))
    flask.session["pair"] = (pair[0] + 1, pair[1])
    return seen()


@app.get("/")
def seen() -> dict[str, Any]:
    n, word = flask.session.get("pair", (0, "times"))
    return {"pid": os.getpid(), "user": flask_login.current_user.get_id(), "n": n, "word": word}
