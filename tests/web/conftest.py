"""What tests of several frameworks need."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from ports import free_port


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    """A client of a Redis that apps keep their sessions of before in."""
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    assert program is not None, "redis-server is missing: apt-get install redis-server"
    port, where = free_port(), tmp_path_factory.mktemp("redis")
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=where)
    client = redis.Redis(port=port, socket_timeout=30, retry=Retry(ConstantBackoff(0.1), 300))
    try:
        client.ping()
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(60)
