"""Certificate requests as a node makes them."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broadcast_server.signer.certificates import KeyPair, LocalAuthority


def a_device(authority: LocalAuthority, name: str) -> KeyPair:
    """A fresh device key and the certificate that the authority gives it."""
    key = ed25519.Ed25519PrivateKey.generate()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, None)
    chain = authority.issue_device(request.public_bytes(Encoding.PEM), name)
    return KeyPair(chain, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
