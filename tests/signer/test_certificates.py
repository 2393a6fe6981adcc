"""The local authority: what it signs, what it refuses, how it is rotated, and that TLS peers believe it."""

from __future__ import annotations

import ssl
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broadcast_server.domain.errors import Corrupt, Invalid
from broadcast_server.signer.certificates import DeviceCertifier, LocalAuthority
from broadcast_server.supervise import InlineExecutor, SystemChance, SystemClock
from tests.support.clock import FakeClock

NODE = "0191f2d3c4b5a69788796a5b4c3d2e1f"
Key = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def authority(tmp_path: Path, clock: FakeClock) -> LocalAuthority:
    return LocalAuthority(tmp_path / "authority", clock=clock, chance=SystemChance(), reserved={"server"})


def request_of(key: Key, name: str = "somebody-else", *, is_authority: bool = False) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    if is_authority:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    how = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, how).public_bytes(Encoding.PEM)


def leaf(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(pem)[0]


def revoked(pem: bytes) -> set[int]:
    end = b"-----END X509 CRL-----\n"
    lists = [x509.load_pem_x509_crl(one + end) for one in pem.split(end)[:-1]]
    return {entry.serial_number for one in lists for entry in one}


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())])
def test_a_node_is_named_by_us_and_may_be_a_client_for_a_year(authority: LocalAuthority, clock: FakeClock, key: Key):
    made = leaf(authority.issue_device(request_of(key, is_authority=True), NODE))
    assert made.subject.rfc4514_string() == f"CN={NODE}"
    assert made.public_key() == key.public_key()
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert made.not_valid_after_utc - clock.now() == timedelta(days=365)
    made.verify_directly_issued_by(x509.load_pem_x509_certificates(authority.authority_pem())[0])


@pytest.mark.parametrize(
    ("request_pem", "cause"),
    [
        (b"", "unreadable"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "unreadable"),
        (request_of(rsa.generate_private_key(65_537, 2_048)), "key_type"),
        (request_of(ec.generate_private_key(ec.SECP384R1())), "key_type"),
        (b"x" * 9_000, "too_large"),
    ],
)
def test_a_request_that_is_none_is_refused(authority: LocalAuthority, request_pem: bytes, cause: str):
    with pytest.raises(Invalid) as refusal:
        authority.issue_device(request_pem, NODE)
    assert (refusal.value.code, refusal.value.facts["cause"]) == ("csr_invalid", cause)
    assert authority.issued() == []


def test_a_request_signed_with_another_key_is_refused(authority: LocalAuthority):
    mine, other = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
    good = x509.load_pem_x509_csr(request_of(mine)).public_bytes(Encoding.DER)
    there = other.public_key().public_bytes_raw()
    swapped = good.replace(mine.public_key().public_bytes_raw(), there)
    with pytest.raises(Invalid) as refusal:
        authority.issue_device(x509.load_der_x509_csr(swapped).public_bytes(Encoding.PEM), NODE)
    assert refusal.value.facts["cause"] == "signature"


@pytest.mark.parametrize("name", ["server", "", "a/b", "+", "#", "x" * 65, "đài", "a\nb"])
def test_a_name_of_ours_or_that_is_none_is_no_nodes(authority: LocalAuthority, name: str):
    with pytest.raises(Invalid) as refusal:
        authority.issue_device(request_of(ed25519.Ed25519PrivateKey.generate()), name)
    assert refusal.value.code == "node_name_invalid"


def test_keys_are_for_our_eyes_only_and_survive_a_restart(authority: LocalAuthority, tmp_path: Path, clock: FakeClock):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "authority").iterdir()}
    assert set(modes.values()) == {0o600}
    assert {"current.key", "backup.key"} <= set(modes)
    again = LocalAuthority(tmp_path / "authority", clock=clock, chance=SystemChance())
    assert again.authority_pem() == authority.authority_pem()
    (tmp_path / "authority" / "current.key").write_bytes((tmp_path / "authority" / "backup.key").read_bytes())
    with pytest.raises(Corrupt):
        again.authority_pem()


async def test_a_retired_nodes_certificates_are_on_the_list_and_the_others_are_not(
    authority: LocalAuthority, clock: FakeClock
):
    certifier = DeviceCertifier(authority, InlineExecutor())
    serials = {}
    for name in ("n1", "n2", "n3"):
        serials[name] = leaf(
            await certifier.issue_device(request_of(ed25519.Ed25519PrivateKey.generate()), name)
        ).serial_number
    assert authority.out_of_service({"n1", "n2"}) == frozenset()  # n3 is fresh: its row is on the way
    retired = authority.out_of_service({"n1"})
    assert revoked(authority.revocations(retired)) == {serials["n2"]}
    await clock.advance(600.1)
    assert revoked(authority.revocations(authority.out_of_service({"n1"}))) == {serials["n2"], serials["n3"]}
    await clock.advance(366 * 86_400)
    assert authority.issued() == []


def test_two_lists_of_one_second_are_told_apart(authority: LocalAuthority):
    first, second = (x509.load_pem_x509_crl(authority.revocations(())) for _ in range(2))
    assert first.last_update_utc < second.last_update_utc


def test_a_torn_line_of_the_register_is_passed_over(authority: LocalAuthority, tmp_path: Path):
    authority.issue_device(request_of(ed25519.Ed25519PrivateKey.generate()), "n1")
    with (tmp_path / "authority" / "issued").open("a") as register:
        register.write("1f4a abc")
    assert [one.name for one in authority.issued()] == ["n1"]
    authority.issue_device(request_of(ed25519.Ed25519PrivateKey.generate()), "n2")
    assert [one.name for one in authority.issued()] == ["n1", "n2"]


async def test_the_servers_certificate_is_kept_until_it_must_be_renewed(
    authority: LocalAuthority, tmp_path: Path, clock: FakeClock
):
    hosts = ("127.0.0.1", "loa.example.vn")
    files = authority.server_files(tmp_path / "tls", hosts)
    first = files.certificate.read_bytes()
    assert authority.server_files(tmp_path / "tls", hosts).certificate.read_bytes() == first
    assert authority.server_files(tmp_path / "tls", (*hosts, "::1")).certificate.read_bytes() != first
    second = authority.server_files(tmp_path / "tls", hosts).certificate.read_bytes()
    await clock.advance(270 * 86_400)
    assert authority.server_files(tmp_path / "tls", hosts).certificate.read_bytes() != second


def test_after_a_rotation_who_trusted_the_backup_trusts_the_new_servers_certificate(
    authority: LocalAuthority,
):
    told_before = x509.load_pem_x509_certificates(authority.authority_pem())
    old_node = leaf(authority.issue_device(request_of(ed25519.Ed25519PrivateKey.generate()), "n1"))
    authority.rotate()
    fresh = leaf(authority.issue_server(["127.0.0.1"]).certificate)
    fresh.verify_directly_issued_by(told_before[1])
    trusted = x509.load_pem_x509_certificates(authority.authority_pem())
    assert len(trusted) == 3  # the node's certificate still lives, so its authority does
    old_node.verify_directly_issued_by(trusted[2])
    assert revoked(authority.revocations(authority.out_of_service(()))) == set()
    authority.rotate(keep=False)
    assert fresh.issuer not in {one.subject for one in x509.load_pem_x509_certificates(authority.authority_pem())}


def test_python_and_openssl_believe_the_chain(tmp_path: Path):
    authority = LocalAuthority(tmp_path / "authority", clock=SystemClock(), chance=SystemChance())
    files = authority.server_files(tmp_path / "tls", ["127.0.0.1", "localhost"])
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=authority.authority_pem().decode())
    server.load_cert_chain(files.certificate, files.key)
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cadata=authority.authority_pem().decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    own = authority.issue_own("server")
    pair = tmp_path / "own.pem"
    pair.write_bytes(own.key + own.certificate)
    client.load_cert_chain(pair)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    there = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (here, there):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    subject = there.getpeercert()
    assert subject is not None
    assert subject["subject"] == ((("commonName", "server"),),)
