"""A Flask app with Flask-Login, flash messages, a login at an identity provider (Authlib) and Flask-SocketIO.

``PROVIDER``: the address of the identity provider.
"""

from __future__ import annotations

import os
from typing import Any

import flask
import flask_login
import flask_socketio
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.flask_client import OAuth

from coatcheck.web.flask import SessionInterface

app = flask.Flask("shop")
app.secret_key = "for Flask-Login's own cookies"
app.session_interface = SessionInterface()
logins = flask_login.LoginManager(app)
logins.login_view = "form"
PROVIDER = os.environ.get("PROVIDER", "http://127.0.0.1:9")
oauth = OAuth(app)
oauth.register(
    "idp",
    client_id="shop",
    client_secret="for-tests-only",
    authorize_url=f"{PROVIDER}/authorize",
    access_token_url=f"{PROVIDER}/token",
    client_kwargs={"scope": "profile", "code_challenge_method": "S256"},
)
sockets = flask_socketio.SocketIO(app, async_mode="threading")


class User(flask_login.UserMixin):
    def __init__(self, name: str) -> None:
        self.id = name


logins.user_loader(User)
PAGE = """<!doctype html><link rel="icon" href="data:,"><title>shop</title>
{% for message in get_flashed_messages() %}<p class="said">{{ message }}</p>{% endfor %}
{% if current_user.is_authenticated %}<p id="who">{{ current_user.id }}</p>
<p id="cart">{{ session.get("cart", [])|length }}</p>
<a id="look" href="/">look</a>
<form method="post" action="/buy"><input id="what" name="what"><button id="buy">buy</button></form>
<form method="post" action="/logout"><button id="leave">log out</button></form>
{% else %}
<form method="post" action="/form"><input id="name" name="name"><button id="enter">log in</button></form>
{% endif %}
"""


@app.route("/form", methods=["GET", "POST"])
def form() -> Any:
    if flask.request.method == "POST":
        flask_login.login_user(User(flask.request.form["name"]))
        flask.flash(f"welcome {flask.request.form['name']}")
        return flask.redirect("/")
    return flask.render_template_string(PAGE)


@app.get("/")
@flask_login.login_required
def shop() -> str:
    return flask.render_template_string(PAGE)


@app.post("/buy")
@flask_login.login_required
def buy() -> Any:
    flask.session.setdefault("cart", []).append(flask.request.form["what"])
    flask.flash(f"bought {flask.request.form['what']}")
    return flask.redirect("/")


@app.post("/logout")
def leave() -> Any:
    flask_login.logout_user()
    flask.flash("good bye")
    return flask.redirect("/form")


@app.get("/server")
def server() -> str:
    return os.environ["COATCHECK_SERVER"]


# -- what the crowd of the kill test asks ---------------------------------------------------------------


@app.post("/login/<who>")
def sign_in(who: str) -> dict[str, Any]:
    flask_login.login_user(User(who))
    return {}


@app.post("/write/<mark>")
def write(mark: str) -> dict[str, Any]:
    n = flask.session["n"] = flask.session.get("n", 0) + 1
    flask.session.setdefault("log", {})[mark] = n
    flask.flash(mark)
    return {"n": n}


@app.get("/read")
def read() -> dict[str, Any]:
    user, session = flask_login.current_user, flask.session
    return {"who": user.get_id(), "n": session.get("n"), "log": session.get("log"), "cart": session.get("cart")}


@app.post("/said")
def said() -> dict[str, Any]:
    return {"said": flask.get_flashed_messages()}


# -- a login at an identity provider --------------------------------------------------------------------


@app.get("/oauth")
def ask_provider() -> Any:
    return oauth.idp.authorize_redirect(flask.url_for("callback", _external=True))


@app.get("/oauth/callback")
def callback() -> Any:
    try:
        token = oauth.idp.authorize_access_token()
    except OAuthError as error:
        return {"error": error.error}, 400
    flask_login.login_user(User(token["user"]))
    return {"who": token["user"], "server": os.environ["COATCHECK_SERVER"]}


# -- Socket.IO ------------------------------------------------------------------------------------------


@sockets.on("connect")
def connected() -> Any:
    return None if flask_login.current_user.is_authenticated else False


@sockets.on("say")
def say(words: str) -> list[Any]:
    flask.session["heard"] = flask.session.get("heard", 0) + 1
    return [words, os.environ["COATCHECK_SERVER"], flask_login.current_user.get_id(), flask.session["heard"]]
