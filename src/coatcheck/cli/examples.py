"""Examples of each command: a line to type, and what it does."""

from __future__ import annotations

from typing import Final

EXAMPLES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "admit": (("coatcheck admit web-2", "requests go to it again"),),
    "audit": (
        ("coatcheck audit --follow", "what happens, as it happens"),
        ("coatcheck audit --user ada --json", "all about one user, for programs"),
    ),
    "certs init": (("coatcheck certs init --dir certs", "makes the authority; ca.key stays there"),),
    "certs issue": (("coatcheck certs issue web-1 --address 10.0.0.11", "one file for the server web-1"),),
    "certs ls": (("coatcheck certs ls", "what lives, and until when"),),
    "certs revoke": (("coatcheck certs revoke web-1", "then bring revoked.pem to every server"),),
    "check": (
        ("coatcheck check --config farm.toml", "before you start or restart"),
        ("coatcheck check app:app --web 3 --json", "for programs; it ends with 2 if something is wrong"),
    ),
    "completion": (
        ("coatcheck completion bash > ~/.local/share/bash-completion/completions/coatcheck", "from the next shell on"),
        ("source <(coatcheck completion zsh)", "in this shell alone"),
    ),
    "demo": (
        ("coatcheck demo", "a shop on a farm; kill what you like"),
        ("coatcheck demo --open", "the same, and your browser opens it"),
        ("coatcheck demo --tour", "it kills by itself, and counts what was lost"),
    ),
    "drain": (
        ("coatcheck drain web-2", "its sessions move; then it stops"),
        ("coatcheck drain web-2 --timeout 5m", "for apps with long requests"),
    ),
    "keys ls": (("coatcheck keys ls", "which keys seal, open, and are known where"),),
    "keys new": (("coatcheck keys new", "a key for a key file, COATCHECK_KEYS or connect(keys=...)"),),
    "keys revoke": (("coatcheck keys revoke 3f9a11c2", "after a leak; who has nothing newer is logged out"),),
    "keys rotate": (
        ("coatcheck keys rotate", "nobody notices"),
        ("coatcheck keys rotate --announce", "on several machines with a ring each: first this on all, then without"),
    ),
    "metrics": (
        ("coatcheck metrics", "once, of the farm that runs here"),
        ("coatcheck metrics | promtool check metrics", "as Prometheus would read them"),
    ),
    "pool audit": (
        ("coatcheck pool audit --audit-dir pool-audit --user ada", "who borrowed the tokens of ada, when"),
        ("coatcheck pool audit --audit-dir pool-audit --follow --json", "what happens, as it happens, for programs"),
    ),
    "pool clean-up": (
        ("coatcheck pool clean-up --store sqlite:///tokens.db --key-file keys", "what has expired goes"),
    ),
    "pool ls": (
        ("coatcheck pool ls --store sqlite:///tokens.db --key-file keys --watch", "every slot, each second"),
        ("coatcheck pool ls --url http://127.0.0.1:8200 --token-file bearer --user ada", "of a service, one user"),
    ),
    "pool remove": (
        ("coatcheck pool remove ada --url http://127.0.0.1:8200 --token-file bearer", "all tokens of ada"),
        ("coatcheck pool remove ada 17 --store redis://127.0.0.1/0 --key-file keys", "one of them"),
    ),
    "pool reset": (("coatcheck pool reset ada --store sqlite:///tokens.db --key-file keys", "after a wrong clock"),),
    "pool serve": (
        ("coatcheck pool serve --token-file bearer", "in memory; callers log in"),
        (
            "coatcheck pool serve --token-file b --login-command /opt/login --store redis://10.0.0.5 --key-file keys",
            "it logs in by itself; all instances share one store",
        ),
    ),
    "pool soap-gateway": (
        (
            "coatcheck pool soap-gateway --upstream http://127.0.0.1:8300/soap --user SADMIN --token-file bearer",
            "SOAP clients call it as if it were the upstream",
        ),
    ),
    "pool stats": (("coatcheck pool stats --store sqlite:///tokens.db --key-file keys --json", "for programs"),),
    "serve": (
        ("coatcheck serve app:app", "one web server, on http://127.0.0.1:8000"),
        ("coatcheck serve app:app --web 3 --session-servers 2", "a farm that loses nothing when processes die"),
        ("coatcheck serve --config farm.toml --port 8080", "flags win over the file"),
        ("DJANGO_SETTINGS_MODULE=shop.settings coatcheck serve --web 3", "a Django project"),
    ),
    "service credential": (("coatcheck service credential billing", "for the caller that callers.toml names billing"),),
    "service serve": (("coatcheck service serve --callers callers.toml", "beside a running farm, on port 8100"),),
    "sessions close": (
        ("coatcheck sessions close 5c1f00d2", "the one that `sessions ls` shows by this key"),
        ("coatcheck sessions close --user ada", "ada is logged out everywhere"),
    ),
    "sessions ls": (
        ("coatcheck sessions ls --user ada", "where ada is logged in, with devices"),
        ("coatcheck sessions ls --session-server redis://127.0.0.1/0 --keys-file keys.json", "without a farm"),
    ),
    "sessions show": (("coatcheck sessions show 5c1f00d2", "its times, its copies, what the app stored"),),
    "simulate": (
        ("coatcheck simulate --seeds 1000", "a thousand histories with faults; says the first broken promise"),
        ("coatcheck simulate --seed 42 --trace", "one of them, step by step"),
    ),
    "soap serve": (("coatcheck soap serve --user SADMIN:secret --expire-rate 0.1", "a provider that misbehaves"),),
    "status": (
        ("coatcheck status --watch", "every process, each second"),
        ("coatcheck status --json", "for programs"),
    ),
    "tls rotate-ticket-keys": (("coatcheck tls rotate-ticket-keys", "after a leak of memory, say"),),
    "tls status": (("coatcheck tls status", "who resumes what, with which keys"),),
}
"""By the words of the command."""
