"""TLS connections that outlive the web server that ended them (mission C1, C6, C7): ``serve --tls end-to-end``."""
