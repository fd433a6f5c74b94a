"""Call a SOAP web service through a pool of session tokens, and see that it logs in once.

pip install 'coatcheck[soap,zeep]'
python examples/soap_pool.py                                 # starts a provider of its own
coatcheck soap serve &  python examples/soap_pool.py --wsdl http://127.0.0.1:8300/soap?wsdl
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

import zeep

from coatcheck.pool import TokenPool
from coatcheck.pool.adapters.zeep import SessionPlugin, ZeepSessions

USER = PASSWORD = "SADMIN"


def call_many(wsdl: str, calls: int) -> str:
    plugin = SessionPlugin()
    client = zeep.Client(wsdl, plugins=[plugin])

    def sign_in(user: str) -> str:
        return plugin.sign_in(client.service.WhoAmI, user, PASSWORD)

    def sign_out(user: str, token: str) -> None:
        plugin.sign_out(client.service.Logout, token)

    with TokenPool(login=sign_in, logout=sign_out, per_user=4) as pool:
        sessions = ZeepSessions(plugin, pool)
        for number in range(calls):
            answer = sessions.call(USER, client.service.Echo, f"call {number}")
            assert answer == f"call {number}"
        logins = pool.stats()[USER].logins_total
    return f"{calls} calls, {logins} login{'s' if logins != 1 else ''}"


def main(arguments: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wsdl", help="of a provider that runs already")
    parser.add_argument("--calls", type=int, default=100)
    options = parser.parse_args(arguments)
    if options.wsdl:
        return call_many(options.wsdl, options.calls)
    command = [sys.executable, "-m", "coatcheck.cli", "soap", "serve", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as provider:
        assert provider.stdout is not None
        try:
            return call_many(provider.stdout.readline().split()[-1], options.calls)
        finally:
            provider.terminate()


if __name__ == "__main__":
    print(main())
