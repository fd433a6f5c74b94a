"""A SOAP web service with sessions, to be run by any ASGI server.

pip install 'coatcheck[soap]'
uvicorn examples.soap_provider:app --port 8300      # WSDL: http://127.0.0.1:8300/soap?wsdl
"""

from coatcheck.soap_provider import Misbehaviour, ProviderOptions, soap_app

app = soap_app(
    ProviderOptions(
        users={"SADMIN": "SADMIN", "*": "guest"},
        misbehaviour=Misbehaviour(slow_login_s=0.1, max_sessions_per_user=4),
    )
)
