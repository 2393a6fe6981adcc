"""The local certificate authority: who a server, a node and our own parts are, on TLS.

It lies in files of mode 0600 under `LOA_DATA_DIR/authority`, made at the first start: `current` signs, `backup` waits
(nodes are told both, so a rotation reaches nodes that are asleep), `former-…` only signs revocations until the last
certificate it gave has ended. A maintainer must not break: (1) the name in a node's certificate is the node id that we
give it, whatever its request says; (2) every node's certificate is in `issued`, fsynced, before it is handed out: the
list of revocations is made from it; (3) two lists of one process never carry the same second, because OpenSSL goes on
with the older of two equals.

ECDSA P-256 with SHA-256, which mosquitto, OpenSSL and browsers all take (no browser takes Ed25519); a node may bring
an Ed25519 key. RFC 5280.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
import ssl
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broadcast_server.domain.clock import Chance, Clock
from broadcast_server.domain.errors import Corrupt, Invalid, Unavailable
from broadcast_server.logs import get_logger
from broadcast_server.supervise import Executor

log = get_logger()

AUTHORITY_LIFE: Final = timedelta(days=20 * 365)
SERVER_LIFE: Final = timedelta(days=397)
"""What browsers grant at most."""
DEVICE_LIFE: Final = timedelta(days=365)
OWN_LIFE: Final = timedelta(days=5 * 365)
"""Our own parts' certificates live in memory alone, as long as the process."""
LIST_LIFE: Final = timedelta(days=60)
"""How long a list of revocations holds; it is written anew every day."""
LIST_AGE: Final = timedelta(days=1)
SLACK: Final = timedelta(days=1)
"""So much before now a certificate begins: a node's clock may be behind."""
SETTLING: Final = timedelta(minutes=10)
"""So long a fresh certificate's node may be missing among those in service: its row is on the way."""
REQUEST_LIMIT_BYTES: Final = 8 * 1024

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

_DevicePublic = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate with what belongs to it, PEM. `certificate` holds the chain, its own first."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class KeyPairFiles:
    """Where a `KeyPair` lies."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Issued:
    """A node's certificate that was given out."""

    serial: int
    issuer: str
    """The authority's serial, hex."""
    name: str
    issued_at: datetime
    ends_at: datetime


@dataclass(frozen=True, slots=True)
class _Signing:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def id(self) -> str:
        return f"{self.certificate.serial_number:x}"

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


class LocalAuthority:
    """The authority of one data directory; several processes may open it.

    `reserved`: names that no node may have (our own users at the broker).
    """

    def __init__(self, folder: Path, *, clock: Clock, chance: Chance, reserved: Collection[str] = ()) -> None:
        """Raises `Corrupt("authority_damaged")`."""
        self._folder, self._clock, self._chance = folder, clock, chance
        self._reserved = frozenset(reserved)
        self._seen_in_service: set[str] = set()
        self._register_read: list[Issued] = []
        self._register_bytes = 0
        self._list_at = datetime.min.replace(tzinfo=UTC)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked():
            for role in ("current", "backup"):
                if not (folder / f"{role}.pem").exists():
                    self._make_authority(role)

    # -- what is trusted

    def authority_pem(self) -> bytes:
        """What a peer trusts: the authority that signs now, its backup, and former ones whose certificates live."""
        return b"".join(
            one.public_bytes(Encoding.PEM)
            for one in (
                self._load("current").certificate,
                self._certificate("backup"),
                *(former.certificate for former in self._former()),
            )
        )

    def rotate(self, *, keep: bool = True) -> None:
        """The backup signs from now on, and a new backup is made; peers that were told both need nothing new.

        `keep` False: the authority until now was stolen, so what it signed is trusted no longer: nodes need new
        certificates before they are let in again. Raises `Corrupt("authority_damaged")` while the backup's key is away.
        """
        with self._locked():
            self._load("backup")  # its key must be here, and be its own
            if keep:
                name = f"former-{self._load('current').id}"
                for ending in ("key", "pem"):
                    os.link(self._folder / f"current.{ending}", self._folder / f"{name}.{ending}")
            for ending in ("key", "pem"):  # the key first: a certificate whose key is another's is noticed at once
                (self._folder / f"backup.{ending}").replace(self._folder / f"current.{ending}")
            self._make_authority("backup")
        log.warning("authority.rotated", kept=keep)

    def overview(self, own: Path) -> list[dict[str, str]]:
        """What there is: `{role, name, until}`. `own`: the server's certificate, if it was made."""
        told = []
        parts = [("authority", self._load("current").certificate), ("backup", self._certificate("backup"))]
        parts += [("former", each.certificate) for each in self._former()]
        if own.exists():
            parts.append(("server", x509.load_pem_x509_certificate(own.read_bytes())))
        for role, one in parts:
            until = one.not_valid_after_utc.isoformat()
            told.append({"role": role, "name": one.subject.rfc4514_string(), "until": until})
        told += [{"role": "node", "name": one.name, "until": one.ends_at.isoformat()} for one in self.issued()]
        return told

    # -- certificates

    def issue_server(self, hosts: Sequence[str]) -> KeyPair:
        """A server's certificate for these names and addresses, with a new key. Raises `Invalid("host_invalid")`."""
        names = [_general_name(host) for host in dict.fromkeys(hosts)]
        key = self._new_key()
        certificate = self._sign(
            key.public_key(),
            name=hosts[0][:64],
            life=SERVER_LIFE,
            usage=ExtendedKeyUsageOID.SERVER_AUTH,
            names=names,
        )
        return KeyPair(self._chain(certificate), _key_pem(key))

    def server_files(self, folder: Path, hosts: Sequence[str]) -> KeyPairFiles:
        """As `issue_server`, kept in a folder: made anew when it ends within a third of its life, names other hosts,
        or was signed by another authority.
        """
        files = KeyPairFiles(folder / "server.pem", folder / "server.key")
        if not self._still_serves(files, hosts):
            pair = self.issue_server(hosts)
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(files.key, pair.key)
            write_private(files.certificate, pair.certificate)
            log.info("authority.server_certificate", hosts=list(hosts))
        return files

    def issue_own(self, name: str) -> KeyPair:
        """A client certificate for a part of this server, with a new key."""
        key = self._new_key()
        certificate = self._sign(
            key.public_key(), name=name, life=OWN_LIFE, usage=ExtendedKeyUsageOID.CLIENT_AUTH, names=()
        )
        return KeyPair(self._chain(certificate), _key_pem(key))

    def told_of(self, pair: KeyPair) -> Issued:
        """One of our own, as the list of revocations names it."""
        certificate = x509.load_pem_x509_certificate(pair.certificate)
        name = certificate.subject.rfc4514_string().removeprefix("CN=")
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return Issued(certificate.serial_number, self._load("current").id, name, begins, ends)

    def issue_device(self, csr_pem: bytes, node_id: str) -> bytes:
        """The certificate chain for a node's request (PEM both). The name is `node_id`, for one year, as a client only.

        Nothing of the request is taken over but its key. Raises `Invalid("csr_invalid")`.
        """
        if not _NAME.fullmatch(node_id) or node_id in self._reserved:
            raise Invalid("node_name_invalid", field="node_id", node_id=node_id[:80])
        public = _requested_key(csr_pem)
        certificate = self._sign(
            public, name=node_id, life=DEVICE_LIFE, usage=ExtendedKeyUsageOID.CLIENT_AUTH, names=()
        )
        self._register(certificate, node_id)
        log.info("authority.device_certificate", node_id=node_id, serial=f"{certificate.serial_number:x}")
        return self._chain(certificate)

    # -- revocation

    def issued(self) -> list[Issued]:
        """Every node's certificate that has not ended."""
        now = self._clock.now()
        self._read_register()
        return [one for one in self._register_read if one.ends_at > now]

    def _read_register(self) -> None:
        """What was added since it was read last; other processes write it too."""
        try:
            with (self._folder / "issued").open("rb") as register:
                register.seek(self._register_bytes)
                added = register.read()
        except FileNotFoundError:
            return
        whole = added[: added.rfind(b"\n") + 1]
        self._register_bytes += len(whole)
        for line in whole.decode("ascii", "replace").splitlines():
            words = line.split(" ")
            if len(words) == 5:  # else a power cut tore it: its certificate was never handed out
                began, ends = datetime.fromisoformat(words[3]), datetime.fromisoformat(words[4])
                self._register_read.append(Issued(int(words[0], 16), words[1], words[2], began, ends))

    def out_of_service(self, in_service: Collection[str]) -> frozenset[Issued]:
        """Certificates of nodes that are not among those in service."""
        serving = frozenset(in_service)
        self._seen_in_service |= serving
        settled = self._clock.now() - SETTLING
        return frozenset(
            one
            for one in self.issued()
            if one.name not in serving and (one.name in self._seen_in_service or one.issued_at < settled)
        )

    def revocations(self, revoked: Collection[Issued]) -> bytes:
        """The list of revocations, PEM, one of each authority that has signed nodes."""
        now = self._clock.now()
        self._list_at = max(now - SLACK, self._list_at + timedelta(seconds=1)).replace(microsecond=0)
        lists = []
        for signing in (self._load("current"), *self._former()):
            builder = (
                x509.CertificateRevocationListBuilder()
                .issuer_name(signing.certificate.subject)
                .last_update(self._list_at)
                .next_update(now + LIST_LIFE)
                .add_extension(
                    x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.key.public_key()), critical=False
                )
                .add_extension(x509.CRLNumber(int(self._list_at.timestamp())), critical=False)
            )
            for one in sorted(revoked, key=lambda each: each.serial):
                if one.issuer == signing.id:
                    entry = x509.RevokedCertificateBuilder().serial_number(one.serial).revocation_date(self._list_at)
                    builder = builder.add_revoked_certificate(entry.build())
            lists.append(builder.sign(signing.key, hashes.SHA256()).public_bytes(Encoding.PEM))
        return b"".join(lists)

    # -- inside

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time changes the files."""
        descriptor = os.open(self._folder / "lock", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make_authority(self, role: str) -> None:
        now = self._clock.now()
        key = self._new_key()
        serial = self._new_serial()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"loa local authority {serial:x}"[:48])])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(now - SLACK)
            .not_valid_after(now + AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(is_authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_private(self._folder / f"{role}.key", _key_pem(key))
        write_private(self._folder / f"{role}.pem", certificate.public_bytes(Encoding.PEM))

    def _sign(
        self,
        public: _DevicePublic,
        *,
        name: str,
        life: timedelta,
        usage: x509.ObjectIdentifier,
        names: Sequence[x509.GeneralName],
    ) -> x509.Certificate:
        signing = self._load("current")
        now = self._clock.now()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(signing.certificate.subject)
            .public_key(public)
            .serial_number(self._new_serial())
            .not_valid_before(now - SLACK)
            .not_valid_after(now + life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.key.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(signing.key, hashes.SHA256())

    def _chain(self, certificate: x509.Certificate) -> bytes:
        return certificate.public_bytes(Encoding.PEM) + self._load("current").pem

    def _register(self, certificate: x509.Certificate, node_id: str) -> None:
        line = " ".join(
            (
                f"{certificate.serial_number:x}",
                self._load("current").id,
                node_id,
                self._clock.now().isoformat(),
                certificate.not_valid_after_utc.isoformat(),
            )
        )
        with self._locked():
            descriptor = os.open(self._folder / "issued", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                os.write(descriptor, f"{chr(10) if is_torn else ''}{line}\n".encode("ascii"))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _still_serves(self, files: KeyPairFiles, hosts: Sequence[str]) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
            key = load_pem_private_key(files.key.read_bytes(), None)
            certificate.verify_directly_issued_by(self._load("current").certificate)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        return (
            key.public_key() == certificate.public_key()
            and set(names) == {_general_name(host) for host in hosts}
            and self._clock.now() < renew_at(certificate)
        )

    def _certificate(self, role: str) -> x509.Certificate:
        """Without its key, which may lie in a safe."""
        try:
            return x509.load_pem_x509_certificate((self._folder / f"{role}.pem").read_bytes())
        except (OSError, ValueError) as error:
            raise Corrupt("authority_damaged", name=role) from error

    def _load(self, role: str) -> _Signing:
        try:
            certificate = x509.load_pem_x509_certificate((self._folder / f"{role}.pem").read_bytes())
            key = load_pem_private_key((self._folder / f"{role}.key").read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise Corrupt("authority_damaged", name=role) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise Corrupt("authority_damaged", name=role)
        return _Signing(certificate, key)

    def _former(self) -> list[_Signing]:
        living = {one.issuer for one in self.issued()}
        former = [self._load(path.stem) for path in sorted(self._folder.glob("former-*.pem"))]
        return [one for one in former if one.id in living]

    def _new_key(self) -> ec.EllipticCurvePrivateKey:
        """From the injected chance; 16 bytes more than the order has, so that no value is likelier than another."""
        drawn = int.from_bytes(self._chance.token_bytes(48), "big")
        return ec.derive_private_key(drawn % (_P256_ORDER - 1) + 1, ec.SECP256R1())

    def _new_serial(self) -> int:
        return int.from_bytes(self._chance.token_bytes(16), "big") | 1


class BrokerIdentities:
    """The `Identities` of an embedded broker: its own certificate, its clients', and who is struck off."""

    def __init__(self, authority: LocalAuthority, folder: Path, hosts: Sequence[str], clock: Clock) -> None:
        """`folder`: where the server's certificate lies; `hosts`: what it is called."""
        self._authority, self._folder, self._hosts, self._clock = authority, folder, tuple(hosts), clock
        self._listed: tuple[frozenset[Issued], datetime] | None = None

    def server_files(self) -> tuple[Path, Path]:
        """Certificate chain and key."""
        files = self._authority.server_files(self._folder, self._hosts)
        return files.certificate, files.key

    def authority_pem(self) -> bytes:
        """What is trusted."""
        return self._authority.authority_pem()

    def context(self, name: str | None) -> ssl.SSLContext:
        """A client's side of TLS."""
        return client_context(self.authority_pem(), None if name is None else self._authority.issue_own(name))

    def is_list_due(self, in_service: Collection[str]) -> bool:
        """Whether others are out of service than were listed, or that was long ago."""
        if self._listed is None:
            return True
        listed, at = self._listed
        return self._authority.out_of_service(in_service) != listed or self._clock.now() - at > LIST_AGE

    def next_list(self, in_service: Collection[str]) -> tuple[bytes, ssl.SSLContext]:
        """A list, and one whom it revokes."""
        revoked = self._authority.out_of_service(in_service)
        self._listed = (revoked, self._clock.now())
        fallen = self._authority.issue_own("canary-revoked")
        return (
            self._authority.revocations([*revoked, self._authority.told_of(fallen)]),
            client_context(self.authority_pem(), fallen),
        )


class ServerSide:
    """Our side of HTTPS and of the push listener: one TLS context that is renewed without a restart.

    `given`: the operator's own files; None: a certificate of the local authority for `hosts`.
    """

    def __init__(
        self, authority: LocalAuthority, folder: Path, hosts: Sequence[str], given: KeyPairFiles | None
    ) -> None:
        self._authority, self._folder, self._hosts, self._given = authority, folder, tuple(hosts), given
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.renew()

    def renew(self) -> None:
        """Read, or make, the certificate again; who connects from now on sees it.

        Raises `Unavailable("certificate_unreadable")` on files that are none.
        """
        files = self._given or self._authority.server_files(self._folder, self._hosts)
        try:
            self.context.load_cert_chain(files.certificate, files.key)
        except (OSError, ssl.SSLError) as error:
            raise Unavailable("certificate_unreadable", file=str(files.certificate)) from error


class DeviceCertifier:
    """The `Certifier` of the desk: the authority's part for nodes, off the loop."""

    def __init__(self, authority: LocalAuthority, executor: Executor) -> None:
        self._authority, self._executor = authority, executor

    async def issue_device(self, csr_pem: bytes, node_id: str) -> bytes:
        """See `LocalAuthority.issue_device`."""
        return await self._executor.run(self._authority.issue_device, csr_pem, node_id)

    def authority_pem(self) -> bytes:
        """See `LocalAuthority.authority_pem`."""
        return self._authority.authority_pem()


def client_context(authority_pem: bytes, own: KeyPair | None = None) -> ssl.SSLContext:
    """A client's side of TLS 1.2 or later that trusts this authority and nobody else, and shows `own`."""
    context = ssl.create_default_context(cadata=authority_pem.decode("ascii"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if own is not None:
        with tempfile.NamedTemporaryFile("wb") as pair:  # mode 0600; the library reads only files
            pair.write(own.key + own.certificate)
            pair.flush()
            context.load_cert_chain(pair.name)
    return context


def renew_at(certificate: x509.Certificate) -> datetime:
    """From when on a certificate is to be replaced: two thirds of its life."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begins + (ends - begins) * 2 / 3


def write_private(path: Path, content: bytes) -> None:
    """Replace a file in one step: nobody else may read it, not even for a moment, and a power cut loses nothing."""
    fresh = path.with_name(path.name + ".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _requested_key(csr_pem: bytes) -> _DevicePublic:
    """The key of a request whose sender holds it. Raises `Invalid("csr_invalid")`."""
    if len(csr_pem) > REQUEST_LIMIT_BYTES:
        raise Invalid("csr_invalid", field="csr", cause="too_large")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        is_signed = request.is_signature_valid
        public = request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise Invalid("csr_invalid", field="csr", cause="unreadable") from error
    if not is_signed:
        raise Invalid("csr_invalid", field="csr", cause="signature")
    if isinstance(public, ed25519.Ed25519PublicKey):
        return public
    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
        return public
    raise Invalid("csr_invalid", field="csr", cause="key_type")


def _general_name(host: str) -> x509.GeneralName:
    bare = host.strip("[]")
    try:
        return x509.IPAddress(ipaddress.ip_address(bare))
    except ValueError:
        pass
    if not re.fullmatch(r"(?!-)[A-Za-z0-9_.-]{1,253}", bare):
        raise Invalid("host_invalid", field="host", host=host[:80])
    return x509.DNSName(bare.lower())


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
