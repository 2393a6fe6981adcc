"""How a new box proves that it was expected: a claim code that is printed on it and known to the server as a hash.

Ten signs of Crockford's alphabet (50 bits, no I, L, O, U), used once. Box and server derive the same key from it with
scrypt, salted by the serial, so that what the server stores cannot be turned back into the code in useful time; the box
sends an HMAC with that key over its certificate request, its serial and a nonce of its own. A renewal is signed by the
device key.

- key: scrypt of the code (upper case, I and L as 1, O as 0), N=4096, r=8, p=1, 32 bytes; salt: `loa/1 claim ` and the
  serial (upper case)
- proof: HMAC-SHA256 with that key over `loa/1 CLAIM` and a zero byte, then certificate request (PEM), serial and nonce,
  each after its length (4 bytes, big-endian)
- renewal: Ed25519 over `loa/1 CERTIFICATE` and a zero byte, then node id, certificate request and nonce in the same way

Standard library only; open to everybody.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final

ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
CODE_SIGNS: Final = 10
KEY_BYTES: Final = 32
COST: Final = 1 << 12
"""scrypt's N with r=8, p=1: 4 MiB and some 10 ms for one guess."""
_SERIAL: Final = re.compile(r"[A-Z0-9][A-Z0-9-]{3,39}")
_ALIKE: Final = str.maketrans("ILO", "110")
_PROOF: Final = b"loa/1 CLAIM\0"
_RENEWAL: Final = b"loa/1 CERTIFICATE\0"


def normal_serial(text: str) -> str | None:
    """A serial as it is stored: upper case, 4–40 letters, digits and hyphens; None if it is none."""
    told = text.strip().upper()
    return told if _SERIAL.fullmatch(told) else None


def normal_code(text: str) -> str | None:
    """A claim code as it is hashed: upper case, I and L read as 1, O as 0, spaces and hyphens left out; None: none."""
    told = text.upper().replace("-", "").replace(" ", "").translate(_ALIKE)
    return told if len(told) == CODE_SIGNS and all(sign in ALPHABET for sign in told) else None


def code_of(random: bytes) -> str:
    """A claim code out of 10 random bytes (five bits of each are used)."""
    if len(random) != CODE_SIGNS:
        raise ValueError(f"{CODE_SIGNS} bytes are needed, not {len(random)}")
    return "".join(ALPHABET[byte & 31] for byte in random)


def shown(code: str) -> str:
    """A claim code as people read it: two groups of five."""
    return f"{code[:5]}-{code[5:]}"


def claim_key(serial: str, code: str) -> bytes:
    """The key a normal serial and a normal code give; what the server stores. Some 10 ms of one core."""
    return hashlib.scrypt(
        code.encode(), salt=b"loa/1 claim " + serial.encode(), n=COST, r=8, p=1, dklen=KEY_BYTES, maxmem=32 << 20
    )


def proof(key: bytes, csr_pem: str, serial: str, nonce: str) -> str:
    """HMAC-SHA256 over certificate request, serial and nonce, each after its length; 64 hexadecimal digits."""
    return hmac.new(key, _PROOF + _joined(csr_pem, serial, nonce), hashlib.sha256).hexdigest()


def renewal(node_id: str, csr_pem: str, nonce: str) -> bytes:
    """What the device key signs to ask for another certificate."""
    return _RENEWAL + _joined(node_id, csr_pem, nonce)


def _joined(*parts: str) -> bytes:
    raws = [part.encode() for part in parts]
    return b"".join(len(raw).to_bytes(4, "big") + raw for raw in raws)
