"""Boxes over HTTP: who is expected, tokens for trials, and the doors a device uses without a person."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import Query, Response
from pydantic import Discriminator, Field, StringConstraints, Tag

from broadcast_server.api.deps import ActorDep, DeskDep
from broadcast_server.api.fields import TAG, Form, Id, IdPath, IdQuery, Secret, Shown
from broadcast_server.api.gate import Router, asks, by_secret
from broadcast_server.api.idempotency import IdempotentRoute
from broadcast_server.api.paging import Page, PagingDep
from broadcast_server.control import certificates, enrolment
from broadcast_server.control.access import Action
from broadcast_server.control.certificates import Renewal
from broadcast_server.control.enrolment import Claim, ClaimQuery, Enrol, NewDevice, NewEnrolmentToken
from broadcast_server.store.tables import EnrolmentTokenRow
from broadcast_server.store.tables_devices import DeviceClaimRow
from broadcast_server.store.words import NodeState
from speaker_protocol import claims

router = Router(tags=["nodes"], route_class=IdempotentRoute)

ClusterCode = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")]
Serial = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{3,39}$")]
Csr = Annotated[str, StringConstraints(pattern=r"^[\x0a\x0d\x20-\x7e]{1,4096}$")]
"""A request for a certificate, PEM."""
Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
About = Annotated[str, StringConstraints(max_length=120)]


# -- tokens -----------------------------------------------------------------------------------------------------------


class EnrolmentTokenForm(Form):
    """The right to enrol `uses` nodes for one unit, for so long; `activates`: they sound at once, unseen."""

    unit_id: Id
    uses: Annotated[int, Field(ge=1, le=20_000)] = 1
    valid_for_s: Annotated[int, Field(ge=60, le=90 * 86_400)] = 86_400
    activates: bool = False


class EnrolmentToken(Shown):
    """A token; what it is worth, never what it is."""

    id: str
    unit_id: str
    uses_left: int
    activates: bool
    expires_at: datetime
    created_by: str

    @classmethod
    def of(cls, row: EnrolmentTokenRow) -> EnrolmentToken:
        """As callers see it."""
        return cls(
            id=row.id,
            unit_id=row.unit_id,
            uses_left=row.uses_left,
            activates=row.activates,
            expires_at=row.expires_at,
            created_by=row.created_by,
        )


class EnrolmentTokenMade(EnrolmentToken):
    """With its secret, which is told only here."""

    token: str


@router.post("/enrolment-tokens", status_code=201)
@asks(Action.NODE_ENROL)
async def create_enrolment_token(
    desk: DeskDep, actor: ActorDep, form: EnrolmentTokenForm, response: Response
) -> EnrolmentTokenMade:
    """Make a token for a trial. One that `activates` also needs the right to approve nodes."""
    request = NewEnrolmentToken(form.unit_id, form.uses, timedelta(seconds=form.valid_for_s), form.activates)
    made = await enrolment.create_enrolment_token(desk, actor, request)
    response.headers["Cache-Control"] = "no-store"
    return EnrolmentTokenMade(**EnrolmentToken.of(made.token).model_dump(), token=made.secret)


@router.get("/enrolment-tokens")
@asks(Action.NODE_ENROL)
async def list_enrolment_tokens(
    desk: DeskDep,
    actor: ActorDep,
    unit_id: Annotated[str, Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")],
) -> list[EnrolmentToken]:
    """Tokens of the unit that can still be used."""
    return [EnrolmentToken.of(row) for row in await enrolment.list_enrolment_tokens(desk, actor, unit_id)]


@router.delete("/enrolment-tokens/{token_id}", status_code=204)
@asks(Action.NODE_ENROL)
async def void_enrolment_token(desk: DeskDep, actor: ActorDep, token_id: IdPath) -> None:
    """Make a token worthless."""
    await enrolment.void_enrolment_token(desk, actor, token_id)


# -- claims -----------------------------------------------------------------------------------------------------------


class DeviceForm(Form):
    """A box that is to come.

    `cluster_code`: of the cluster it shall drive, also one whose node it replaces; left out: a new cluster.
    `claim_code`: what is printed on the box; left out: one is made and told once. `open`: it may come from now on.
    """

    serial: Serial
    unit_id: Id
    cluster_code: ClusterCode | None = None
    claim_code: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z -]{10,20}$")] | None = None
    open: bool = True


class Device(Shown):
    """An expected box. It may come until `open_until`; `closed_at`: too many wrong claim codes, open it again."""

    id: str
    serial: str
    unit_id: str
    cluster_id: str | None
    cluster_code: str | None
    open_until: datetime | None
    closed_at: datetime | None
    wrong_tries: int
    created_by: str
    created_at: datetime

    @classmethod
    def of(cls, row: DeviceClaimRow) -> Device:
        """As callers see it."""
        return cls(
            id=row.id,
            serial=row.serial,
            unit_id=row.unit_id,
            cluster_id=row.cluster_id,
            cluster_code=row.cluster_code,
            open_until=row.open_until,
            closed_at=row.closed_at,
            wrong_tries=row.wrong_tries,
            created_by=row.created_by,
            created_at=row.created_at,
        )


class DeviceMade(Device):
    """With the claim code, if one was made for it; it is told only here."""

    claim_code: str | None


@router.post("/devices", status_code=201)
@asks(Action.NODE_ENROL)
async def register_device(desk: DeskDep, actor: ActorDep, form: DeviceForm, response: Response) -> DeviceMade:
    """Expect a box."""
    request = NewDevice(form.serial, form.unit_id, form.cluster_code, form.claim_code, form.open)
    made = await enrolment.register_device(desk, actor, request)
    response.headers["Cache-Control"] = "no-store"
    shown = None if made.code is None else claims.shown(made.code)
    return DeviceMade(**Device.of(made.claim).model_dump(), claim_code=shown)


@router.get("/devices")
@asks(Action.NODE_ENROL)
async def list_devices(desk: DeskDep, actor: ActorDep, paging: PagingDep, within: IdQuery = None) -> Page[Device]:
    """Boxes that are expected and have not come, by id."""
    found = await enrolment.list_claims(desk, actor, ClaimQuery(within, paging.after, paging.fetch))
    return paging.page(found, key=lambda row: row.id, item=Device.of)


@router.post("/devices/{device_id}/window")
@asks(Action.NODE_ENROL)
async def open_device_window(desk: DeskDep, actor: ActorDep, device_id: IdPath) -> Device:
    """Let it come within a quarter of an hour from now."""
    return Device.of(await enrolment.open_window(desk, actor, device_id))


@router.delete("/devices/{device_id}", status_code=204)
@asks(Action.NODE_ENROL)
async def void_device(desk: DeskDep, actor: ActorDep, device_id: IdPath) -> None:
    """Expect it no more; its claim code is worthless."""
    await enrolment.void_claim(desk, actor, device_id)


# -- enrolment --------------------------------------------------------------------------------------------------------


class EnrolForm(Form):
    """What a device says of itself by token. `public_key`: its Ed25519 key, which is also the key of its `csr`."""

    token: Secret
    public_key: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    hardware: About
    firmware: About
    cluster_code: ClusterCode | None = None
    csr: Csr | None = None


class ClaimForm(Form):
    """What a device says of itself by its claim code.

    `proof`: HMAC-SHA256 with the key of the claim code over `csr`, serial and nonce (`speaker_protocol.claims`).
    """

    serial: Serial
    csr: Csr
    nonce: Nonce
    proof: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    hardware: About
    firmware: About


def _by(form: Any) -> str:
    names = form if isinstance(form, Mapping) else vars(form)
    return TAG + ("claim" if "serial" in names or "proof" in names else "token")


AnyEnrolForm = Annotated[
    Annotated[EnrolForm, Tag(f"{TAG}token")] | Annotated[ClaimForm, Tag(f"{TAG}claim")], Discriminator(_by)
]


class BrokerAddress(Shown):
    """Where the node connects."""

    host: str
    port: int
    tls: bool
    ca_pem: str | None


class Enrolled(Shown):
    """What a device needs to begin; `password` and `asset_token` are told only here.

    `state`: whether it may sound. `certificate`: its PEM chain; null where nodes get none, or asked for later.
    """

    node_id: str
    cluster_id: str
    state: NodeState
    broker: BrokerAddress
    username: str
    password: str
    root_public_key: str
    path: list[str]
    assets_url: str
    asset_token: str
    certificate: str | None
    server_time: datetime


@router.post("/nodes/enrol", status_code=201)
@by_secret()
async def enrol_node(
    desk: DeskDep,
    form: AnyEnrolForm,
    response: Response,
) -> Enrolled:
    """Register a device; its claim code, or a token, is its authority.

    For a cluster that has a node this is a swap: that node is replaced when the new one is approved, or at once by a
    token that activates.
    """
    if isinstance(form, ClaimForm):
        claim = Claim(form.serial, form.csr, form.nonce, form.proof, form.hardware, form.firmware)
        told = await enrolment.enrol_by_claim(desk, claim)
    else:
        request = Enrol(form.token, form.public_key, form.hardware, form.firmware, form.cluster_code, form.csr)
        told = await enrolment.enrol(desk, request)
    response.headers["Cache-Control"] = "no-store"
    return Enrolled(
        node_id=told.node_id,
        cluster_id=told.cluster_id,
        state=told.state,
        broker=BrokerAddress(
            host=told.broker["host"],
            port=told.broker["port"],
            tls=told.broker.get("tls", False),
            ca_pem=told.broker.get("ca_pem"),
        ),
        username=told.node_id,
        password=told.password,
        root_public_key=told.root_public_key,
        path=list(told.path),
        assets_url=told.assets_url,
        asset_token=told.asset_token,
        certificate=told.certificate,
        server_time=told.server_time,
    )


class RenewalForm(Form):
    """A node asks for another certificate. `signature`: by its device key (`speaker_protocol.claims.renewal`)."""

    node_id: Id
    csr: Csr
    nonce: Nonce
    signature: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]


class Certificate(Shown):
    """PEM chain, the node's own first; `ca_pem`: whom it trusts from now on."""

    certificate: str
    ca_pem: str


@router.post("/nodes/me/certificate", status_code=201)
@by_secret()
async def renew_certificate(desk: DeskDep, form: RenewalForm, response: Response) -> Certificate:
    """Another certificate for a node in service; its device key is its authority."""
    told = await certificates.renew(desk, Renewal(form.node_id, form.csr, form.nonce, form.signature))
    response.headers["Cache-Control"] = "no-store"
    return Certificate(certificate=told.chain, ca_pem=told.authority)
