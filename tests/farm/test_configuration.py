"""Settings: three ways in, one order, and a clear line for everything wrong."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from coatcheck.duration import format_duration, parse_duration
from coatcheck.errors import ConfigError
from coatcheck.farm.files.keys import FarmKeys, load_or_create, save
from coatcheck.farm.plan.plan import make_plan
from coatcheck.farm.plan.ports import InternalPorts
from coatcheck.farm.plan.roles import Address
from coatcheck.farm.settings.configuration import SETTINGS, load_settings
from coatcheck.farm.settings.reference import BEGIN, END, options_table
from coatcheck.stores.session_server_url import parse_session_server, parse_session_servers, shown_url

from .farm_process import EXAMPLES

WITH_TLS = "[farm]\ntls_certificate = 'c'\ntls_key = 'k'\n"
WITH_SITES = (
    "[sites.shop]\norigin = 'https://shop.example'\n"
    "[sites.tickets]\norigin = 'https://tickets.example'\npaths = ['/tickets/*']\n"
)
OPERATIONS = Path(__file__).parents[2] / "docs/operations.md"


def test_later_ways_in_win(tmp_path: Path) -> None:
    file = tmp_path / "farm.toml"
    file.write_text('[farm]\nweb = 3\nport = 8100\nname = "shop"\n[session]\nidle_timeout = "15m"\n')
    settings = load_settings(file, {"COATCHECK_PORT": "8200", "COATCHECK_NAME": "till"}, {"port": "8300", "web": None})
    assert (settings.web, settings.port, settings.name, settings.session.idle_timeout_s) == (3, 8300, "till", 900.0)
    assert load_settings() == load_settings(None, {}, {})


def test_every_option_has_every_way_in(tmp_path: Path) -> None:
    samples = {
        "app": "a:b", "factory": "true", "interface": "wsgi",
        "name": "n", "run_dir": "r", "keys_file": "k", "host": "::1", "port": "1234",
        "server": "granian", "access_log": "yes", "session_server": "redis://a redis://b",
        "reload": "yes", "reload_dir": "src lib", "restart": "off",
        "durability": "one", "below_target": "refuse", "too_few_answers": "serve", "rolled_back": "accept",
        "sticky": "session", "open_streams": "tell", "conflict": "reject", "theft": "report", "internal_links": "tcp",
        "at_session_limit": "refuse", "device_binding": "offer",
        "absolute_timeout_s": "13h", "tls_certificate": "c", "tls_key": "k", "trusted_proxy": "::1",
        "cookie_name": "c", "cookie_same_site": "strict", "cookie_domain": "a.example", "cookie_path": "/a",
        "cookie_partitioned": "1", "cookie_insecure_localhost": "1", "session_servers": "4", "copies": "1",
        "session_server_max_bytes": "70000", "session_server_max_entries": "70",
        "max_head_bytes": "4096", "max_connections": "7", "max_sends": "1", "max_waiting": "5",
        "tls_sharing": "take-once", "tls": "end-to-end", "takeover": "yes", "key_ring": "shared",
        "service": "127.0.0.1:8100", "service_callers": "callers.toml",
        "cookie_clear_site_data": "1", "signals": "signals.toml",
        "metrics": "127.0.0.1:9100", "log_format": "json", "log_level": "debug",
        "site": "tickets", "hand_off": "token-in-url",
        "kept_body_bytes": "2048", "reserved_descriptors": "64", "first_byte_timeout_s": "70s",
        "kept_websocket_bytes": "2048", "max_websocket_message_bytes": "4096",
    }  # fmt: skip
    with_tls = {"COATCHECK_TLS_CERTIFICATE": "c", "COATCHECK_TLS_KEY": "k"}
    for setting in SETTINGS:
        text = samples.get(setting.parameter, "7s" if setting.option.duration else "4")
        more = {
            "tls_certificate": {"COATCHECK_TLS_KEY": "k"},
            "tls_key": {"COATCHECK_TLS_CERTIFICATE": "c"},
            "reload_dir": {"COATCHECK_RELOAD": "yes"},
            "cookie_partitioned": {"COATCHECK_COOKIE_SAME_SITE": "none"},
            "key_ring": {"COATCHECK_SESSION_SERVER": "redis://a redis://b"},
            "hsts_s": with_tls,
            "tls_sharing": with_tls,
            "tls": with_tls,
            "service": {"COATCHECK_SERVICE_CALLERS": "callers.toml"},
            "service_callers": {"COATCHECK_SERVICE": "127.0.0.1:8100"},
            "signals": {"COATCHECK_SERVICE": "127.0.0.1:8100", "COATCHECK_SERVICE_CALLERS": "callers.toml"},
            "takeover": with_tls | {"COATCHECK_TLS": "end-to-end"},
            "tls_session_lifetime_s": with_tls,
            "tls_ticket_period_s": with_tls,
            "tls_fetch_timeout_s": with_tls | {"COATCHECK_TLS_SHARING": "take-once"},
            "site": {"COATCHECK_SESSION_SERVER": "redis://a redis://b"},
            "hand_off": {"COATCHECK_SESSION_SERVER": "redis://a redis://b"},
        }.get(setting.parameter, {})
        tables = WITH_SITES if setting.parameter in ("site", "hand_off") else ""
        beside = tmp_path / "beside.toml"
        beside.write_text(tables)
        by_environment = load_settings(beside, {setting.env: text} | more)
        value = text.split() if setting.is_list else text
        by_flag = load_settings(beside, more, {setting.parameter: value})
        quoted = "[" + ", ".join(f'"{v}"' for v in value) + "]" if setting.is_list else f'"{value}"'
        file = tmp_path / "farm.toml"
        file.write_text(f"[{setting.table}]\n{setting.key} = {quoted}\n{tables}")
        by_file = load_settings(file, more)
        assert by_environment == by_flag == by_file, setting.parameter
        assert setting.of(by_flag) != setting.default, setting.parameter


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[farm]\nwebs = 2", "[farm] has no setting 'webs'; did you mean 'web'?"),
        ("[farms]\nweb = 2", "unknown table or key 'farms'; did you mean 'farm'?"),
        ("web = 2", "unknown table or key 'web'"),
        ("[farm]\nweb = 'two'", "[farm] web: write a whole number (got 'two')"),
        ("[farm]\nweb = 2.5", "[farm] web: write a whole number"),
        ("[farm]\nweb = true", "[farm] web: write a whole number"),
        ("[director]\nresend_after = '30s'", "resend_after: 30s is not below first_byte_timeout (30s)"),
        ("[director]\nfirst_byte_timeout = '10s'", "resend_after: 20s is not below first_byte_timeout (10s)"),
        ("[director]\nmax_sends = 3", "[director] max_sends: must be at most 2"),
        ("[farm]\nweb = 0", "[farm] web: must be at least 1"),
        ("[farm]\nport = 70000", "[farm] port: must be at most 65535"),
        ("[farm]\nrestart = 3", "[farm] restart: write true or false"),
        ("[farm]\nserver = 'gunicorn'", "[farm] server: choose one of uvicorn, granian"),
        ("[farm]\nsession_server = [1]", "[farm] session_server: write a list of strings"),
        ("[farm]\nname = 'a b'", "name: 1 to 64 letters"),
        ("[farm]\nhost = ''", "host: name an address"),
        ("[farm]\nmetrics = '9100'", "metrics: an address such as 127.0.0.1:8200"),
        ("[farm]\nlog_format = 'xml'", "[farm] log_format: choose one of text, json"),
        ('[farm]\napp = "a\\u0000b"', "[farm] app: write a string without control characters"),
        ("[farm]\nunresponsive_after = 'soon'", "[farm] unresponsive_after: write a duration"),
        ("[farm]\nunresponsive_after = '1ms'", "[farm] unresponsive_after: must be at least 500ms"),
        ("[farm]\nunresponsive_after = inf", "[farm] unresponsive_after: a duration is finite"),
        ("[farm]\nsession_servers = 0", "session_servers: at least 1"),
        ("[session]\ncopies = 3", "copies: 3 copies need as many session servers, not 2; set copies to 2 or less"),
        ("[session]\ncopies = 'some'", '[session] copies: write a whole number or "all"'),
        ("[session]\nrotate_after = 0\ngrace = 0", 'theft = "refuse"'),
        ("[session]\ndurability = 'async'\nbelow_target = 'refuse'", 'below_target: "refuse" needs durability'),
        ("[session]\ncookie_name = 'a'", "[session] has no setting 'cookie_name'; it is 'name' in [cookie]"),
        ("[cookie]\nmax_age = '13h'", "cookie_max_age: longer than absolute_timeout"),
        ("[cookie]\npartitioned = true", 'cookie_partitioned: needs same_site = "none"'),
        ("[cookie]\nsame_site = 'none'\ninsecure_localhost = true", 'browsers refuse cookie_same_site "none" without'),
        ("[cookie]\nname = 'a b'", "cookie_name: letters, digits and -_. only"),
        ("[session]\ngrace = 0", 'needs theft = "refuse"'),
        ("[session]\nidle_timeout = '2d'", "idle_timeout: longer than absolute_timeout"),
        ("[farm]\nhost = '0.0.0.0'\n[cookie]\ninsecure_localhost = true", "insecure_localhost: only for a loopback"),
        ("[farm]\nsession_server = ['http://a']", "the URL begins with one of redis://"),
        ("[farm]\nsession_server = ['redis://']", "the host is missing; write redis://[:PASSWORD@]HOST[:PORT]"),
        ("[farm]\nsession_server = ['a=redis://x', 'a=redis://y']", "two have the same name"),
        (
            "[farm]\nsession_server = ['redis://x', 'redis://y', 'valkey://:p@X:6379']",
            "session-1 and session-3 are one",
        ),
        ("[farm]\nsession_server = ['sqlite:///a/../s.db', 'b=sqlite:///s.db']", "session-1 and b are one server"),
        ("[farm]\nsession_servers = 2\nsession_server = ['redis://x']", "drop one of the two"),
        ("[farm]\ntls_key = 'k'", "give both or none"),
        ("[farm]\ninternal_links = 'tcp'\nserver = 'granian'", "granian cannot check who comes by TCP"),
        ("[farm]\ninternal_links = 'http'", "[farm] internal_links: choose one of unix, tcp"),
        ("[farm]\nsession_server_max_bytes = 100", "session_server_max_bytes: must be at least 65536"),
        ("[session]\nnew_session_life = '-1s'", "new_session_life: "),
        ("[director]\nhsts = '365d'", "hsts: only with tls_certificate"),
        ("[farm]\ntls_sharing = 'take-once'", "tls_sharing: only with tls_certificate"),
        ("[farm]\ntls = 'end-to-end'", "tls: end-to-end needs tls_certificate"),
        ("[farm]\ntakeover = true", "takeover: only with tls = end-to-end"),
        (
            f"{WITH_TLS}tls = 'end-to-end'\ninternal_links = 'tcp'",
            "tls: end-to-end passes connections over Unix sockets",
        ),
        ("[farm]\ntls_sharing = 'off'", "tls_sharing: only with tls_certificate"),
        ("[farm]\ntls_sharing = 'tickets'", "choose one of ticket-keys, take-once, off (got 'tickets')"),
        ("[farm]\ntls_session_lifetime = '1h'", "tls_session_lifetime: only with tls_certificate"),
        (f"{WITH_TLS}tls_ticket_period = '2h'\ntls_sharing = 'take-once'", "tls_ticket_period: only with tls_sharing"),
        (f"{WITH_TLS}tls_session_lifetime = '2h'\ntls_sharing = 'off'", "it is OpenSSL's; drop one of them"),
        (f"{WITH_TLS}tls_session_lifetime = '6d'\ntls_ticket_period = '1m'", "tickets of more than 200 keys"),
        (f"{WITH_TLS}tls_fetch_timeout = '1s'", "tls_fetch_timeout: only with tls_sharing"),
        (f"{WITH_TLS}tls_fetch_timeout = '11s'\ntls_sharing = 'take-once'", "tls_fetch_timeout: must be at most 10s"),
        (f"{WITH_TLS}tls_session_lifetime = '7d'", "tls_session_lifetime: must be at most 6d"),
        ("[director]\nmax_head_bytes = 10", "[director] max_head_bytes: must be at least 1024"),
        ("[farm]\nweb = '--5'", "[farm] web: write a whole number (got '--5')"),
        ("[farm]\ntrusted_proxy = ['10.0.0.1/8']", "trusted_proxy: 10.0.0.1/8 has host bits set; write a network"),
        ("[session]\nabsolute_timeout = '3651d'", "[session] absolute_timeout: must be at most 3650d"),
        ("[session]\ngrace = 1e300", "[session] grace: must be at most 3650d"),
        ("[farm]\nsession_server = ['redis://x']\n[session]\ncopies = 2", "set copies to 1, or give 2 of them"),
        ("[farm", "not valid TOML"),
    ],
)
def test_every_mistake_names_the_setting_and_the_mend(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "farm.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    line = str(caught.value)
    assert words in line
    assert "\n" not in line


def test_a_missing_file_and_unknown_variables() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read \(No such file"):
        load_settings(Path("nowhere.toml"))
    with pytest.raises(ConfigError, match="COATCHECK_COPYS: no setting has this name; did you mean 'COATCHECK_COPIES'"):
        load_settings(None, {"COATCHECK_COPYS": "2"})
    with pytest.raises(ConfigError, match="COATCHECK_KEY: no setting has this name; did you mean 'COATCHECK_KEYS'"):
        load_settings(None, {"COATCHECK_KEY": "2"})


def test_a_variable_is_not_likened_to_another_for_its_prefix() -> None:
    with pytest.raises(ConfigError, match="COATCHECK_BOGUS: no setting has this name; see"):
        load_settings(None, {"COATCHECK_BOGUS": "1"}, {})
    with pytest.raises(ConfigError, match="did you mean 'COATCHECK_COPIES'"):
        load_settings(None, {"COATCHECK_COPYS": "1"}, {})


def test_two_spellings_of_one_session_server() -> None:
    for one, other in (("redis://x", "valkeys://:p@X:6379/0"), ("sqlite:///a/../s.db", "sqlite:///s.db")):
        with pytest.raises(ConfigError, match="session-1 and session-2 are one server"):
            parse_session_servers([one, other])
    for one, other in (("redis://x", "redis://x:6380"), ("redis://x/0", "redis://x/1"), ("sqlite:///a", "sqlite:///b")):
        assert len(parse_session_servers([one, other])) == 2
    assert len(parse_session_servers(["memory://", "memory://"], ["memory"])) == 2


def test_durations() -> None:
    assert [parse_duration(x) for x in ("300ms", "2s", "15m", "1.5h", "1d", "90", 7, 0.5, "0")] == (
        [0.3, 2, 900, 5400, 86400, 90, 7, 0.5, 0]
    )
    for seconds in (0, 0.3, 2, 90, 900, 1800, 43200, 86400):
        assert parse_duration(format_duration(seconds)) == pytest.approx(seconds)
    for wrong in ("", "m", "-1", -1, "1 year", None, True, float("nan"), "1e999", "9" * 400):
        with pytest.raises(ValueError, match="duration"):
            parse_duration(wrong)


def test_operations_documents_every_option() -> None:
    text = OPERATIONS.read_text()
    found = text[text.index(BEGIN) : text.index(END) + len(END)]
    assert found == options_table(), "run: python -m coatcheck.farm.settings.reference docs/operations.md"


def test_the_example_file_is_valid() -> None:
    assert load_settings(EXAMPLES / "farm.toml").app == "shop:app"


def test_secrets_have_no_repr(tmp_path: Path) -> None:
    settings = load_settings(None, {}, {"app": "a:b"})
    keys = load_or_create(tmp_path / "keys.json", {})
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
    assert load_or_create(tmp_path / "keys.json", {}) == keys
    ports = InternalPorts()
    shown = repr(make_plan(settings, keys, Address("127.0.0.1", 1), ports)) + repr(keys)
    ports.close()
    assert keys.session_server_password not in shown
    assert repr(keys.keys[0])[2:-1] not in shown
    assert keys.keys[0].hex() not in shown


def test_keys_from_the_environment(tmp_path: Path) -> None:
    import base64
    import secrets

    first, second = secrets.token_bytes(32), secrets.token_bytes(40)
    text = ",".join(base64.urlsafe_b64encode(key).decode() for key in (first, second))
    keys = load_or_create(tmp_path / "keys.json", {"COATCHECK_KEYS": text})
    assert (keys.keys, keys.primary) == ((first, second), 0)
    again = load_or_create(tmp_path / "keys.json", {"COATCHECK_KEYS": text})
    assert (again.keys, again.primary) == (keys.keys, keys.primary)
    assert again.session_server_password != keys.session_server_password, "it is of one start"
    assert not (tmp_path / "keys.json").exists()
    for wrong in ("short", text + "," + text, "é" * 50):
        with pytest.raises(ConfigError, match="COATCHECK_KEYS"):
            load_or_create(tmp_path / "keys.json", {"COATCHECK_KEYS": wrong})


def test_a_damaged_key_file_is_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    save(file, FarmKeys((b"k" * 32,), 0, "password"))
    for damage in (b"", b"{", b'{"keys": [], "primary": 0, "session_server_password": "x"}', b"[1]"):
        file.write_bytes(damage)
        with pytest.raises(ConfigError, match="keys_file"):
            load_or_create(file, {})
        assert file.read_bytes() == damage


def test_session_server_urls() -> None:
    assert parse_session_server("redis://:a=b@h:1", 2).name == "session-2"
    named = parse_session_server("cache.a=valkey://:p@[::1]:7000", 1)
    assert (named.name, shown_url(named.url)) == ("cache.a", "valkey://[::1]:7000")
    assert shown_url("unix://me:x@/run/valkey.sock?db=1") == "unix:///run/valkey.sock"
    for wrong in ("redis://h:99999", "redis://[", "=redis://h", "a b=redis://h", "sqlite://", ""):
        with pytest.raises(ConfigError) as caught:
            parse_session_server("redis://:hush@h:x" if wrong == "" else wrong, 3)
        assert "session_server: number 3" in str(caught.value)
        assert "hush" not in str(caught.value)


OUTSIDE = "[farm]\nsession_server = ['redis://a', 'redis://b']\n"


def test_the_sites_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "farm.toml"
    file.write_text(OUTSIDE + "site = 'tickets'\n" + WITH_SITES)
    sites = load_settings(file).sites
    assert sites is not None
    assert [(site.name, site.origin, site.paths) for site in sites.table] == [
        ("shop", "https://shop.example", ()),
        ("tickets", "https://tickets.example", ("/tickets/*",)),
    ]
    assert (sites.own.name, sites.home.name, sites.hand_off) == ("tickets", "shop", "ticket")
    plan = make_plan(load_settings(file), FarmKeys((bytes(32),), 0, "p"), Address("127.0.0.1", 1), InternalPorts())
    assert all(web.sessions.sites == sites for web in plan.web_servers)
    assert load_settings().sites is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (WITH_SITES, "sites: their farms share session_server URLs"),
        ("[farm]\nsite = 'shop'", "site: only with [sites.NAME]"),
        ("[farm]\nhand_off = 'token-in-url'", "hand_off: only with [sites.NAME]"),
        (OUTSIDE + "site = 'bar'\n" + WITH_SITES, "site: 'bar' is none of [sites]; name one of shop, tickets"),
        (OUTSIDE + "[sites.shop]\norigin = 'https://shop.example'", "sites: 2 to 8 of them"),
        (OUTSIDE + "[sites.shop]\norigins = 'https://shop.example'", "[sites.shop] has an origin"),
        (OUTSIDE + "[sites.shop]\norigin = 1", "[sites.shop] has an origin"),
        (OUTSIDE + "[sites.shop]\nname = 'x'\norigin = 'https://a.example'", "[sites.shop] has an origin"),
        (OUTSIDE + "[sites]\nshop = 'https://shop.example'", "[sites.shop] has an origin"),
        ("sites = 3", "has an origin"),
        (OUTSIDE + "[cookie]\nsame_site = 'strict'\n" + WITH_SITES, 'cookie_same_site: "strict"'),
        (OUTSIDE + "[site.shop]\norigin = 'x'", "unknown table or key 'site'; did you mean 'sites'?"),
    ],
)
def test_what_is_wrong_with_sites_is_said_in_one_line(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "farm.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
