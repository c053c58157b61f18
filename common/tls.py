"""Whom the services believe when they call a server over TLS."""

from __future__ import annotations

import os
import ssl

import certifi


def client_context() -> ssl.SSLContext:
    """Verify certificates and host names by the system's authorities, or those that SSL_CERT_FILE or SSL_CERT_DIR name.

    Where the system has none, Mozilla's are used, which come with certifi.
    """
    context = ssl.create_default_context()
    known = ssl.get_default_verify_paths()
    if not known.cafile and not (known.capath and os.listdir(known.capath)):
        context.load_verify_locations(certifi.where())
    # From Python 3.13 on the default refuses authorities that `openssl req -x509` makes: they do not say what their key
    # is for (RFC 5280, 4.2.1.3). And one that is named is believed, whoever vouches for it.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
