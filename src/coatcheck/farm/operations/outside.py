"""An operator's questions about sessions where no farm of ours runs: this process asks the session servers itself."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

from coatcheck.access import SessionAccess
from coatcheck.connecting import open_sessions
from coatcheck.errors import ConfigError
from coatcheck.farm.control.lines import Message
from coatcheck.farm.files.keys import ENV, load_or_create
from coatcheck.farm.processes.session_answers import session_answers
from coatcheck.farm.settings.configuration import load_settings
from coatcheck.stores.session_server_url import parse_session_servers


def answer_outside(
    config: Path | None, environ: Mapping[str, str], flags: Mapping[str, object], message: Message
) -> Message:
    """Do what a web server of a farm would do. To the session servers this process is one more web server.

    Raises:
        ConfigError: a setting is wrong or missing.
        CoatcheckError: it could not be done.
    """
    settings = load_settings(config, environ, flags)
    if not settings.session_server:
        raise ConfigError("session_server: name the session servers, as the web servers do")
    path = Path(settings.keys_file)
    if not environ.get(ENV) and not (settings.keys_file and path.exists()):
        raise ConfigError("keys_file: name the web servers' key ring, or give their keys in COATCHECK_KEYS")
    keys = load_or_create(path, environ)
    access = SessionAccess(
        farm=settings.name,
        server=f"operator-{os.getpid()}",
        session_servers=parse_session_servers(settings.session_server),
        keys=keys.keys,
        primary_key=keys.primary,
        settings=settings.session,
    )
    return asyncio.run(_answer(access, message))


async def _answer(access: SessionAccess, message: Message) -> Message:
    sessions = open_sessions(access)
    await sessions.start()
    try:
        return await session_answers(sessions)[str(message["op"])](message)
    finally:
        await sessions.aclose()
