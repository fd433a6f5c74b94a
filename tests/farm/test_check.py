"""``coatcheck check``: one line for each thing that is wrong or weak; exit code 2, 1 or 0."""

from __future__ import annotations

import datetime
import json
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coatcheck.farm.check import unusable
from coatcheck.farm.files.keys import load_or_create
from coatcheck.farm.settings.configuration import load_settings
from coatcheck.farm.settings.weaknesses import weaknesses
from other_user import as_stranger

from .farm_process import Command

SOUND = ("counter:app", "--host", "0.0.0.0", "--trusted-proxy", "10.0.0.0/8")


def check(command: Command, *arguments: str, **env: str) -> tuple[int, list[str]]:
    done = command.run("check", *arguments, **env)
    assert "Traceback" not in done.stderr
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_a_sound_configuration(command: Command) -> None:
    assert check(command, *SOUND) == (0, ["nothing is wrong or weak"])
    assert not (command.directory / ".coatcheck").exists()  # it starts nothing and makes nothing


def test_every_mistake_is_found_at_once(command: Command) -> None:
    (command.directory / "farm.toml").write_text('[farm]\nweb = "two"\nwep = 1\n[session]\ntheft = "clos"\n[sesion]\n')
    code, lines = check(command, "--config", "farm.toml", "--copies", "some", COATCHECK_COPYS="2")
    assert code == 2
    assert lines == [
        "wrong: farm.toml: [farm] web: write a whole number (got 'two')",
        "wrong: farm.toml: [farm] has no setting 'wep'; did you mean 'web'?",
        "wrong: farm.toml: [session] theft: choose one of close, refuse, report (got 'clos')",
        "wrong: farm.toml: unknown table or key 'sesion'; did you mean 'session'?",
        "wrong: COATCHECK_COPYS: no setting has this name; did you mean 'COATCHECK_COPIES'?",
        "wrong: --copies: write a whole number or \"all\" (got 'some')",
    ]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (None, "app: there is no module 'shop'"),
        ("import nothing_of_this_name", "app: importing 'shop' failed: ModuleNotFoundError"),
        ("1 / 0", "app: importing 'shop' failed: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "app: importing 'shop:app' ends the process (exit code 3)"),
        ("app = 5", "app: 'shop:app' is a int, not an ASGI or WSGI app"),
        ("async def app(environ, start_response): ...", "app: 'shop:app' is no app; one of ASGI is called with"),
        (
            "from starlette.applications import Starlette\nfrom starlette.middleware import sessions\n"
            "app = Starlette()\napp.add_middleware(sessions.SessionMiddleware, secret_key='x')",
            "app: shop:app installs Starlette's SessionMiddleware",
        ),
    ],
)
def test_the_app_is_imported(command: Command, source: str | None, line: str) -> None:
    if source is not None:
        (command.directory / "shop.py").write_text(source)
    code, lines = check(command, "shop:app", *SOUND[1:])
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"wrong: {line}")


def test_a_wsgi_app_is_sound_and_our_own_middleware_around_it_is_weak(command: Command) -> None:
    (command.directory / "shop.py").write_text("def app(environ, start_response): ...")
    assert check(command, "shop:app", *SOUND[1:]) == (0, ["nothing is wrong or weak"])
    (command.directory / "shop.py").write_text(
        "import coatcheck, coatcheck.web.wsgi as wsgi\ndef app(environ, start_response): ...\n"
        "key = 'for-tests-only-for-tests-only-for-tests-001'\n"
        "app = wsgi.SessionMiddleware(app, coatcheck.connect('memory://', key=key, driver='threads'))"
    )
    code, lines = check(command, "shop:app", *SOUND[1:])
    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith("weak: app: shop:app is wrapped in coatcheck.web.wsgi.SessionMiddleware, which steps")


def test_the_key_file(command: Command) -> None:
    keys = command.directory / "run/keys.json"
    keys.parent.mkdir(mode=0o700)
    load_or_create(keys, {})
    assert check(command, *SOUND, "--run-dir", "run")[0] == 0
    keys.chmod(0o644)
    assert check(command, *SOUND, "--run-dir", "run") == (
        2, ["wrong: keys_file: others can read run/keys.json; run chmod 600 on it"],
    )  # fmt: skip
    keys.chmod(0o600)
    keys.parent.chmod(0o755)
    assert check(command, *SOUND, "--run-dir", "run") == (
        1, ["weak: run_dir: others can look into run; run chmod 700 on it"],
    )  # fmt: skip
    keys.write_text("{}")
    code, lines = check(command, *SOUND, "--keys-file", "run/keys.json")
    assert code == 2
    assert lines[0].startswith("wrong: keys_file: run/keys.json: ")
    code, lines = check(command, *SOUND, COATCHECK_KEYS="short")
    assert code == 2
    assert lines[0].startswith("wrong: COATCHECK_KEYS: ")


def test_directories_that_cannot_be_made(command: Command) -> None:
    (command.directory / "file").write_text("")
    assert check(command, *SOUND, "--run-dir", "file/run") == (
        2, ["wrong: run_dir: file is no directory; choose another"],
    )  # fmt: skip
    assert check(command, *SOUND, "--audit-dir", "file") == (
        2, ["wrong: audit_dir: file is no directory; choose another, or audit_max_bytes 0"],
    )  # fmt: skip
    assert check(command, *SOUND, "--audit-dir", "file", "--audit-max-bytes", "0")[0] == 1
    assert check(command, *SOUND, "--run-dir", "to/be/made", "--audit-dir", "this/too")[0] == 0
    assert not (command.directory / "to").exists()


def test_a_directory_that_this_user_may_not_write_to() -> None:
    assert as_stranger(lambda: unusable(Path("/usr/run"))) == "/usr cannot be written to"


def test_a_key_file_that_git_would_take_along(command: Command) -> None:
    subprocess.run(["git", "init", "-q", "."], cwd=command.directory, check=True)
    load_or_create(command.directory / "keys.json", {})
    code, lines = check(command, *SOUND, "--keys-file", "keys.json")
    assert code == 1
    assert lines == [
        f"weak: keys_file: git in {command.directory} does not ignore keys.json; whoever has it can forge sessions"
    ]
    (command.directory / ".gitignore").write_text("keys.json\n")
    assert check(command, *SOUND, "--keys-file", "keys.json")[0] == 0


def test_certificates(command: Command) -> None:
    def made(days: int) -> tuple[str, ...]:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "farm.example")])
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=90))
            .not_valid_after(now + datetime.timedelta(days=days, hours=1))
            .sign(key, hashes.SHA256())
        )
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        (command.directory / "c.pem").write_bytes(certificate.public_bytes(pem))
        secret = command.directory / "k.pem"
        secret.touch(mode=0o600)
        secret.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        return (
            "counter:app",
            "--host",
            "0.0.0.0",
            "--hsts",
            "365d",
            "--tls-certificate",
            "c.pem",
            "--tls-key",
            "k.pem",
        )

    assert check(command, *made(60))[0] == 0
    code, lines = check(command, *made(3))
    assert (code, lines[0][:27]) == (1, "weak: tls_certificate: it e")
    code, lines = check(command, *made(-1))
    assert (code, lines[0][:33]) == (2, "wrong: tls_certificate: it ended ")
    arguments = made(60)
    (command.directory / "k.pem").chmod(0o644)
    assert check(command, *arguments) == (
        1,
        ["weak: tls_key: everybody on this machine can read k.pem; run chmod 600 on it"],
    )
    (command.directory / "k.pem").write_text("no key")
    code, lines = check(command, *arguments)
    assert (code, lines[0][:52]) == (2, "wrong: tls_certificate: cannot load c.pem with tls_k")


def test_a_readable_file_with_passwords_and_an_address_of_nobody(command: Command) -> None:
    file = command.directory / "farm.toml"
    file.write_text('[farm]\nsession_server = ["rediss://:pw@a.example", "rediss://:pw@b.example"]\n')
    file.chmod(0o644)
    code, lines = check(command, *SOUND, "--config", "farm.toml")
    assert code == 1
    assert lines == ["weak: farm.toml: others can read it, and it may hold session servers' passwords; run chmod 600"]
    file.chmod(0o600)
    assert check(command, *SOUND, "--config", "farm.toml")[0] == 0
    code, lines = check(command, "counter:app", "--host", "no such host")
    assert code == 2
    assert lines[0].startswith("wrong: host: 'no such host' is no address of this machine")


def test_keys_and_passwords_where_others_see_them(command: Command) -> None:
    code, lines = check(command, *SOUND, COATCHECK_KEYS="m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("weak: COATCHECK_KEYS: an environment is seen in crash reports")
    servers = ("--session-server", "rediss://:pw@a.example", "--session-server", "rediss://:pw@b.example")
    code, lines = check(command, *SOUND, *servers)
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("weak: session_server: a password on the command line is seen by every user")
    assert "pw" not in lines[0]
    without = tuple(word.replace(":pw@", "") for word in servers)
    assert not [line for line in check(command, *SOUND, *without)[1] if "command line" in line]


def test_files_that_others_can_change(command: Command) -> None:
    """Whoever writes the settings chooses what runs; whoever writes the callers lets in whom they like."""
    config, callers = command.directory / "farm.toml", command.directory / "callers.toml"
    callers.write_text('[shop]\nscopes = ["verify"]\n')
    config.write_text('[farm]\nservice = "127.0.0.1:8100"\nservice_callers = "callers.toml"\n')
    for file in (config, callers):
        file.chmod(0o644)
    assert check(command, *SOUND, "--config", "farm.toml") == (0, ["nothing is wrong or weak"])
    config.chmod(0o664)
    callers.chmod(0o646)
    assert check(command, *SOUND, "--config", "farm.toml") == (
        1,
        [
            "weak: farm.toml: others can change it, and so what the farm runs; run chmod go-w on it",
            "weak: callers.toml: others can change it, and so who may ask the session service; run chmod go-w on it",
        ],
    )


def test_json(command: Command) -> None:
    done = command.run("check", "counter:app", "--json")
    assert done.returncode == 1
    assert {finding["level"] for finding in json.loads(done.stdout)} == {"weak"}


FLAGS = {"app": "a:b", "host": "0.0.0.0", "trusted_proxy": ["10.0.0.0/8"]}


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ({}, []),
        ({"trusted_proxy": None}, ["host"]),
        ({"host": "127.0.0.1"}, []),
        ({"host": "127.0.0.1", "trusted_proxy": None}, ["insecure_localhost"]),
        ({"trusted_proxy": None, "tls_certificate": "c", "tls_key": "k"}, ["hsts"]),
        ({"tls_certificate": "c", "tls_key": "k", "hsts_s": "365d"}, []),
        ({"tls_certificate": "c", "tls_key": "k", "hsts_s": "365d", "tls_sharing": "take-once"}, []),
        ({"tls_certificate": "c", "tls_key": "k", "hsts_s": "365d", "tls_sharing": "off"}, ["tls_sharing"]),
        ({"tls_certificate": "c", "tls_key": "k", "hsts_s": "30d"}, ["hsts"]),
        ({"trusted_proxy": ["0.0.0.0/0"]}, ["trusted_proxy"]),
        ({"trusted_proxy": ["0.0.0.0/1", "128.0.0.0/1", "::/1"]}, ["trusted_proxy"] * 3),
        ({"trusted_proxy": ["104.16.0.0/13", "2a06:98c0::/29", "fc00::/7", "172.16.0.0/12"]}, []),
        ({"web": "1"}, ["web"]),
        ({"reload": "on"}, ["reload"]),
        ({"metrics": "127.0.0.1:9100"}, []),
        ({"metrics": "0.0.0.0:9100"}, ["metrics"]),
        ({"cookie_same_site": "none"}, ["cookie_same_site"]),
        ({"cookie_same_site": "none", "cookie_partitioned": "yes"}, []),
        ({"cookie_domain": "shop.example"}, ["cookie_domain"]),
        ({"cookie_max_age_s": "30m"}, []),
        ({"cookie_max_age_s": "1h"}, ["cookie_max_age"]),
        ({"cookie_max_age_s": "1m"}, ["cookie_max_age"]),
        ({"copies": "1"}, ["copies"]),
        ({"session_servers": "1"}, ["copies"]),
        ({"session_servers": "5", "copies": "all"}, ["copies"]),
        ({"session_server": ["redis://a.example", "redis://127.0.0.1"]}, ["session_server", "session_server"]),
        ({"session_server": ["redis://:p@a.example", "rediss://:p@b.example"]}, ["session_server"]),
        ({"session_server": ["coatcheck://a.example:1", "coatcheck://:p@b.example:1"]}, ["session_server"] * 3),
        ({"session_server": ["coatcheck://127.0.0.1:1", "coatcheck://:p@[::1]:1"]}, []),
        ({"session_server": ["unix:///run/a.sock", "sqlite:///b.db"]}, []),
        ({"grace_s": "1s"}, ["grace"]),
        ({"grace_s": "20m"}, ["grace"]),
        ({"rotate_after_s": "2h", "idle_timeout_s": "8h"}, ["rotate_after"]),
        ({"lease_s": "2m", "grace_s": "5m"}, ["lease"]),
        ({"open_streams": "tell"}, ["open_streams"]),
        ({"max_connections": "500"}, ["max_connections_per_address"]),
        ({"grace_s": "0", "theft": "refuse"}, ["theft"]),
        ({"lease_s": "58s"}, ["grace"]),
        ({"rotate_after_s": "1h"}, ["rotate_after"]),
        ({"idle_timeout_s": "20d", "absolute_timeout_s": "40d"}, ["idle_timeout", "absolute_timeout"]),
        ({"durability": "async"}, ["durability"]),
        ({"durability": "one"}, ["durability"]),
        ({"theft": "report"}, ["theft"]),
        ({"below_target": "degrade"}, ["below_target"]),
        ({"min_body_rate": "0", "min_read_rate": "0"}, ["min_body_rate", "min_read_rate"]),
        ({"new_session_life_s": "0"}, ["new_session_life"]),
        ({"new_sessions_per_minute": "0"}, ["new_sessions_per_minute"]),
        ({"audit_max_bytes": "0"}, ["audit_max_bytes"]),
        ({"handover_timeout_s": "0"}, ["handover_timeout"]),
        ({"rolled_back": "accept"}, ["rolled_back"]),
        ({"too_few_answers": "serve"}, ["too_few_answers"]),
    ],
)
def test_what_is_weak(flags: dict[str, object], settings: list[str]) -> None:
    lines = list(weaknesses(load_settings(None, {}, {**FLAGS, **flags})))
    assert [line.partition(":")[0] for line in lines] == settings
    assert all("\n" not in line and len(line) < 250 for line in lines)


def test_moving_in(command: Command) -> None:
    file = command.directory / "farm.toml"
    file.write_text('[session.moving_in]\nfrom = "starlette"\nuntil = 2001-01-01\nsecret_env = "OLD_SECRET"\n')
    line = "moving_in: secret_env: the environment has no OLD_SECRET; set it where the farm is started"
    assert check(command, *SOUND, "--config", "farm.toml") == (2, [f"wrong: {line}"])
    over = "moving_in: it is over since 2001-01-01; drop [session.moving_in]"
    assert check(command, *SOUND, "--config", "farm.toml", OLD_SECRET="a key") == (1, [f"weak: {over}"])
