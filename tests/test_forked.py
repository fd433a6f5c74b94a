"""A forked process says and does what one does that an operator's shell starts, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen, TimeoutExpired
from typing import Any, Final

import pytest

import forked
from forked import CoatcheckProcess, ForkedProcess, run_coatcheck

TIMEOUT_S: Final = 60.0
BEARER = "a-bearer-token-for-the-tests"

FACTS = """
import json, os, signal, sys, time
import whereabouts
print(json.dumps({
    "arguments": sys.argv,
    "path": sys.path,
    "here": [__name__, __file__, sys.modules["__main__"].__file__, whereabouts.__file__],
    "folder": os.getcwd(),
    "umask": os.umask(0),
    "environment": dict(os.environ),
    "interpreter": [sys.executable, str(sys.flags), sys.stdout.encoding, sys.getfilesystemencoding(), time.tzname],
    "family": [os.getppid(), os.getpgrp(), os.getsid(0)],
    "interrupted": str(signal.getsignal(signal.SIGINT)),
    "terminated": str(signal.getsignal(signal.SIGTERM)),
    "descriptors": sorted(os.listdir("/proc/self/fd")),
    "input": sys.stdin.read(),
}))
print("and errors", file=sys.stderr)
sys.exit(3)
"""
ECHO = """
import sys
print("begun", flush=True)
for line in sys.stdin:
    print(line.strip(), flush=True)
"""


def cold(*arguments: str, loaded: tuple[str, ...] = (), **how: Any) -> Popen[str]:
    return Popen([sys.executable, *arguments], text=True, **how)


def cold_coatcheck(*arguments: str, **how: Any) -> Popen[str]:
    return cold("-m", "coatcheck.cli", *arguments, **how)


def path_with(folder: Path) -> str:
    """``PYTHONPATH``: the folder, and what is there already."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture
def echo(tmp_path: Path) -> str:
    """A script that goes on until its input ends."""
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    return str(script)


@pytest.fixture
def own_servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[Any, forked.ForkServer]]:
    """Fork servers of this test alone."""
    servers: dict[Any, forked.ForkServer] = {}
    with monkeypatch.context() as patch:
        patch.setattr(forked, "_servers", servers)
        yield servers
    for server in servers.values():
        server.close()


# -- the same as a cold start ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "pool serve --listen nonsense --token-file bearer",
        "pool soap-gateway --listen nonsense --token-file bearer --user A --upstream http://127.0.0.1:1/ "
        "--login-operation {urn:x}A",
        "soap serve --listen nonsense",
        "service serve --listen nonsense --callers bearer --name shop --session-server sqlite:///s.db",
        "serve --nonsense",
    ],
)
def test_a_command_says_the_same(words: str, tmp_path: Path) -> None:
    (tmp_path / "bearer").write_text(BEARER)
    (tmp_path / "bearer").chmod(0o600)
    command = words.split()
    process = cold_coatcheck(*command, cwd=tmp_path, stdout=PIPE, stderr=PIPE)
    output, errors = process.communicate(timeout=TIMEOUT_S)
    done = run_coatcheck(*command, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (process.returncode, output, errors)
    assert done.returncode == 2 and done.stderr


@pytest.mark.parametrize("variables", [{}, {"TZ": "Asia/Tokyo", "PYTHONOPTIMIZE": "1"}], ids=["ours", "others"])
@pytest.mark.parametrize("words", [("facts.py",), ("-m", "facts")], ids=["script", "module"])
def test_a_program_finds_the_same(words: tuple[str, ...], variables: dict[str, str], tmp_path: Path) -> None:
    folder, other = tmp_path / "folder", tmp_path / "other"
    for each in (folder, other):
        each.mkdir()
    (folder / "facts.py").write_text(FACTS)
    (other / "whereabouts.py").touch()
    if words[0] != "-m":
        words = (str(folder / words[0]),)
    environment = {**os.environ, **variables, "PYTHONPATH": path_with(other), "A": "ü\n"}
    found = []
    for start in (cold, ForkedProcess):
        with (tmp_path / "errors").open("w") as errors:
            given: Any = {"cwd": folder, "env": environment, "stdin": DEVNULL, "stdout": PIPE, "stderr": errors}
            process = start(*words, "a b", "", loaded=("whereabouts",), **given)
        with process.stdout:
            facts = json.loads(process.stdout.read())
        found.append((facts, process.wait(TIMEOUT_S), (tmp_path / "errors").read_text()))
    assert found[1] == found[0]
    facts, status, said = found[1]
    assert (status, said) == (3, "and errors\n")
    assert facts["family"] == [os.getpid(), os.getpgrp(), os.getsid(0)]
    assert facts["here"][3] == str(other / "whereabouts.py")
    assert facts["environment"] == environment


def test_a_server_starts_and_serves_and_ends_when_it_is_told(tmp_path: Path) -> None:
    said = []
    for start in (cold_coatcheck, CoatcheckProcess):
        log = tmp_path / start.__name__
        with log.open("w") as errors:
            words = ("soap", "serve", "--listen", "127.0.0.1:0")
            process = start(*words, stdout=PIPE, stderr=errors, stdin=DEVNULL)
        first = process.stdout.readline()
        with urllib.request.urlopen(first.split()[-1], timeout=TIMEOUT_S) as answer:
            page = answer.read().decode()
        assert process.poll() is None
        process.terminate()
        with process.stdout:
            rest = process.stdout.read()
        status = process.wait(TIMEOUT_S)
        said.append((status, *(re.sub(r":\d+", ":PORT", text) for text in (first, rest, page, log.read_text()))))
    assert said[1] == said[0]
    assert said[1][0] == 0 and "definitions" in said[1][3]


@pytest.mark.parametrize("start", [cold, ForkedProcess])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_its_status_says_which(
    start: Callable[..., Any], number: signal.Signals, echo: str
) -> None:
    process = start(echo, loaded=(), stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
    with process.stdin, process.stdout:
        assert process.stdout.readline() == "begun\n"
        with pytest.raises(TimeoutExpired):
            process.wait(0.01)
        process.send_signal(number)
        assert process.wait(TIMEOUT_S) == -number
    assert (process.poll(), process.returncode) == (-number, -number)
    process.kill()  # nobody: another may have its process ID by now


# -- what it is given --------------------------------------------------------------------------------------


def test_it_reads_what_is_written_to_it(echo: str) -> None:
    process = ForkedProcess(echo, loaded=(), stdin=PIPE)
    with process.stdin, process.stdout:
        assert process.stdout.readline() == "begun\n"
        for word in ("one", "two"):
            process.stdin.write(f"{word}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{word}\n"
    assert process.wait(TIMEOUT_S) == 0


def test_what_it_says_is_read_to_its_end(tmp_path: Path) -> None:
    script = tmp_path / "talk.py"
    script.write_text("import os\nos.write(1, b'output, ')\nos.write(2, b'errors, ')\nos.write(1, b'x' * 100_000)\n")
    process = ForkedProcess(str(script), loaded=(), stderr=STDOUT)
    assert process.communicate(TIMEOUT_S) == "output, errors, " + "x" * 100_000
    assert process.returncode == 0


def test_who_goes_on_is_not_waited_for_longer(echo: str) -> None:
    process = ForkedProcess(echo, loaded=(), stdin=PIPE)
    with pytest.raises(TimeoutExpired):
        process.communicate(0.01)
    process.kill()
    process.stdin.close()
    process.communicate(TIMEOUT_S)
    assert process.returncode == -signal.SIGKILL


def test_it_has_a_session_of_its_own_if_that_is_wanted(echo: str) -> None:
    process = ForkedProcess(echo, loaded=(), stdin=PIPE, start_new_session=True)
    with process.stdin, process.stdout:
        assert process.stdout.readline() == "begun\n"
        assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid != os.getsid(0)
    assert process.wait(TIMEOUT_S) == 0


def test_a_large_environment_is_handed_over_and_a_larger_one_refused(tmp_path: Path) -> None:
    script = tmp_path / "count.py"
    script.write_text("import os\nprint(len(os.environ['ONE'] + os.environ['TWO']))\n")
    large = {**os.environ, "ONE": "x" * 100_000, "TWO": "x" * 100_000}
    assert ForkedProcess(str(script), loaded=(), env=large).communicate(TIMEOUT_S) == "200000\n"
    with pytest.raises(ValueError, match="too many"):
        ForkedProcess(str(script), loaded=(), env={**large, "THREE": "x" * 100_000})


# -- who forks it ------------------------------------------------------------------------------------------


def test_each_set_of_variables_has_a_server_and_the_one_used_longest_ago_ends(
    echo: str, own_servers: dict[Any, forked.ForkServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked, "MAX_SERVERS", 2)
    running: list[ForkedProcess] = []

    def server_of(**variables: str) -> forked.ForkServer:
        running.append(ForkedProcess(echo, loaded=(), stdin=PIPE, env={**os.environ, **variables}))
        return list(own_servers.values())[-1]

    first, second = server_of(TZ="Asia/Tokyo"), server_of(TZ="Asia/Kolkata")
    assert server_of(TZ="Asia/Tokyo", SHOP="another") is first is not second
    third = server_of(TZ="Europe/Athens")
    assert list(own_servers.values()) == [first, third]
    assert second.process.returncode == -signal.SIGKILL
    for process in running:
        with process.stdin, process.stdout:
            assert process.stdout.readline() == "begun\n"
        assert process.wait(TIMEOUT_S) == 0, "also one whose fork server has ended"


def test_an_interrupt_at_the_terminal_leaves_the_server(echo: str, own_servers: dict[Any, forked.ForkServer]) -> None:
    for _ in range(2):
        process = ForkedProcess(echo, loaded=(), stdin=PIPE)
        [server] = own_servers.values()
        os.kill(server.process.pid, signal.SIGINT)
        with process.stdin, process.stdout:
            assert process.stdout.readline() == "begun\n"
        assert process.wait(TIMEOUT_S) == 0


def test_a_server_that_ends_says_why_and_is_not_asked_again(
    echo: str, own_servers: dict[Any, forked.ForkServer], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OSError):
        ForkedProcess(echo, loaded=("no_such_module",))
    assert "No module named 'no_such_module'" in capfd.readouterr().err
    for _ in range(2):
        process = ForkedProcess(echo, loaded=())
        assert process.communicate(TIMEOUT_S) == "begun\n"
        [server] = own_servers.values()
        server.process.kill()
        server.process.wait()
        with pytest.raises(OSError):
            ForkedProcess(echo, loaded=())
        assert own_servers == {}


KILLED = """
import signal, sys, subprocess
import forked
idle, busy = (forked.ForkedProcess(sys.argv[1], loaded=(), stdin=stdin) for stdin in (subprocess.PIPE, None))
assert idle.stdout.readline() == busy.stdout.readline() == "begun\\n"
[server] = forked._servers.values()
print(server.process.pid, idle.pid, busy.pid, flush=True)
signal.pause()
"""


def test_a_killed_test_process_leaves_no_server(echo: str, tmp_path: Path) -> None:
    """``idle`` waits for the test process, and ends when that is gone; ``busy`` goes on, for it does not."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": path_with(Path(__file__).parent)}
    reading, writing = os.pipe()
    harness = Popen([sys.executable, str(script), echo], env=environment, stdin=reading, stdout=PIPE, text=True)
    os.close(reading)
    assert harness.stdout is not None
    with harness.stdout, os.fdopen(writing, "w"):
        server, idle, busy = (os.pidfd_open(int(pid)) for pid in harness.stdout.readline().split())
        harness.kill()
        assert harness.wait(TIMEOUT_S) == -signal.SIGKILL
        assert ended(server, TIMEOUT_S) and ended(idle, TIMEOUT_S)
        assert not ended(busy, 0)
    assert ended(busy, TIMEOUT_S)
    for each in (server, idle, busy):
        os.close(each)


def ended(process: int, timeout_s: float) -> bool:
    waiting = select.poll()
    waiting.register(process, select.POLLIN)
    return bool(waiting.poll(timeout_s * 1000))
