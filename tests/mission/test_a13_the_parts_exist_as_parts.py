"""A13: "The parts exist as parts: request handlers on both servers, validation component, token generator." """

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coatcheck import CookiePolicy, Sessions, connect
from coatcheck.service.token_generator import TokenGenerator
from coatcheck.service.validation import SessionValidator
from service.service_process import FARM, KEY, ServiceProcess


def test_the_generator_and_the_validator_work_without_each_other_and_without_the_service(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'sessions.db'}"

    def server() -> Sessions:
        return connect(store, key=KEY, farm=FARM, cookies=CookiePolicy())

    async def use() -> None:
        server_1, server_2 = server(), server()
        generator, validator = TokenGenerator(server_1), SessionValidator(server_2)
        made = await generator.create("ada", {"cart": 1})
        assert made.cookie is not None
        cookie = made.cookie.encode()
        seen = await validator.verify(cookie)
        assert seen is not None and (seen.user, seen.data) == ("ada", {"cart": 1})
        renewed = await generator.renew(cookie, now=True)
        assert renewed is not None and renewed.cookie not in (None, made.cookie)
        assert (await validator.verify((renewed.cookie or "").encode())) == renewed.session
        assert await validator.verify(cookie[:-1] + b"~") is None
        assert await validator.verify(b"") is None
        with pytest.raises(ValueError, match="begins with"):
            await generator.create()
        await server_1.aclose()
        await server_2.aclose()

    asyncio.run(use())


def test_each_is_an_address_of_the_service_of_its_own(tmp_path: Path) -> None:
    callers = '[generates]\nscopes = ["create", "renew"]\n[validates]\nscopes = ["verify"]\n'
    service = ServiceProcess(tmp_path, callers=callers)
    try:
        made = service.ask("", "generates", user="ada").json()
        assert service.ask("/verify", "validates", cookie=made["cookie"]).json()["session"]["user"] == "ada"
        assert service.ask("/verify", "generates", cookie=made["cookie"]).status_code == 403
        assert service.ask("/renew", "validates", cookie=made["cookie"]).status_code == 403
        assert service.ask("", "validates", user="ada").status_code == 403
    finally:
        service.end()
