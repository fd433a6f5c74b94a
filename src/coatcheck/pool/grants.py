"""Ready logins for OAuth 2.0 (RFC 6749), by Authlib: the client's own credentials, and refresh tokens.

```python
pool = TokenPool(login=ClientCredentials("https://id.example.com/token", client_id, client_secret, scope="orders"))
token = pool.shared("orders").get().token
```

What the token endpoint refuses for good (RFC 6749, 5.2) is ``LoginRefused``; anything else is tried again after a
pause. What else its answer holds (``instance_url``, ``scope``) is the token's payload. Extra: ``oauth``.
"""

from __future__ import annotations

from typing import Any, Final

from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session

from coatcheck.pool.errors import LoginRefused
from coatcheck.pool.options import SignedIn

TIMEOUT_S: Final = 20.0
"""For the token endpoint's answer; shorter than a pool's ``login_timeout``."""

REFUSED: Final = frozenset(
    {"invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope"}
)
NOT_PAYLOAD: Final = frozenset({"access_token", "refresh_token", "expires_in", "expires_at", "token_type"})


class _Grant:
    """``client``: more arguments of Authlib's ``OAuth2Session``, such as ``token_endpoint_auth_method``.

    ``parameters``: more fields of the request, such as ``audience``. ``session``: settings of each session, a dict
    with ``verify``, ``cert`` or ``proxies`` (see requests).
    """

    def __init__(
        self,
        token_url: str,
        client_id: str,
        client_secret: str | None = None,
        *,
        scope: str | None = None,
        parameters: dict[str, str] | None = None,
        session: dict[str, Any] | None = None,
        **client: Any,
    ) -> None:
        self._token_url = token_url
        self._client: dict[str, Any] = {"client_id": client_id, "client_secret": client_secret, **client}
        if scope is not None:
            self._client["scope"] = scope
        self._parameters = parameters or {}
        self._session = session or {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._client['client_id']!r}>"

    def _ask(self, user: str, grant: dict[str, str]) -> SignedIn:
        try:
            # A session of its own: OAuth2Session keeps the token that it fetched last.
            with OAuth2Session(**self._client) as session:
                for name, value in self._session.items():
                    setattr(session, name, value)
                answer = dict(session.fetch_token(self._token_url, timeout=TIMEOUT_S, **self._parameters, **grant))
        except OAuthError as error:
            if error.error in REFUSED:
                raise LoginRefused(user) from error
            raise
        payload = {name: value for name, value in answer.items() if name not in NOT_PAYLOAD}
        expires_in_s = answer.get("expires_in")
        return SignedIn(
            answer["access_token"],
            None if expires_in_s is None else float(expires_in_s),
            payload or None,
            answer.get("refresh_token"),
        )


class ClientCredentials(_Grant):
    """The client's own credentials (RFC 6749, 4.4): a service speaks for itself, whoever the pool's user is."""

    def __call__(self, user: str) -> SignedIn:
        return self._ask(user, {"grant_type": "client_credentials"})


class RefreshToken(_Grant):
    """A refresh token (RFC 6749, 6): ``refresh_token`` is the first one, such as the one of a user's consent.

    One that an answer brings is kept sealed in the pool's store, and used next. If that one is refused, the first one
    is tried before the user counts as refused. For shared tokens alone: leases keep no refresh tokens.
    """

    def __init__(
        self, token_url: str, client_id: str, client_secret: str | None = None, *, refresh_token: str, **more: Any
    ) -> None:
        super().__init__(token_url, client_id, client_secret, **more)
        self._first = refresh_token

    def __call__(self, user: str, *, refresh_token: str | None = None) -> SignedIn:
        if refresh_token is not None and refresh_token != self._first:
            try:
                return self._ask(user, {"grant_type": "refresh_token", "refresh_token": refresh_token})
            except LoginRefused:
                pass  # it was revoked, or an operator has given a new one
        return self._ask(user, {"grant_type": "refresh_token", "refresh_token": self._first})
