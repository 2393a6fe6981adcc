"""The smallest server side that speaks the real wire: a real mosquitto, keys, plans, time, assets over HTTP, a relay.

It runs in threads of its own, so nothing a node does in the test's loop delays the time it tells. The benchmark
`sync` uses it too.
"""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from broadcast_server.mqtt.broker import find_mosquitto
from speaker_protocol import frames, topics
from speaker_protocol import messages as wire
from speaker_protocol.rules import BulletinClass, Level, SourceKind
from speaker_protocol.signing import Kind, key_id_of, parse, seal

HOUR_MS = 3_600_000
PATH = ("xa-1", "tinh-1")
ALL_DAY = {"quiet_from_min": 0, "quiet_to_min": 0}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass
class Signer:
    """One key and its rising sequence."""

    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    sequence: int = 0
    epoch: int = 1

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def seal(self, kind: Kind, target: str, body: wire.Body, **changes: Any) -> bytes:
        self.sequence += 1
        issued_ms = now_ms()
        facts: dict[str, Any] = {
            "issued_ms": issued_ms,
            "expires_ms": issued_ms + 7 * 24 * HOUR_MS,
            "epoch": self.epoch,
            "sequence": self.sequence,
            **changes,
        }
        return seal(self.key, key_id_of(self.public), kind=kind, target=target, body=body.encode(), **facts)


def segment(
    entry_id: str,
    start_ms: int,
    seconds: float,
    *,
    asset: str | None = None,
    stream: str | None = None,
    **facts: Any,
) -> wire.PlanSegment:
    told: dict[str, Any] = {
        "klass": BulletinClass.NORMAL,
        "level": Level.NORMAL,
        "source": SourceKind.RELAY if stream else SourceKind.RECORDED,
        **facts,
    }
    end_ms = start_ms + round(seconds * 1000)
    return wire.PlanSegment(entry_id=entry_id, start_ms=start_ms, end_ms=end_ms, asset=asset, stream=stream, **told)


class Station:
    """The server side."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root, self.commune, self.server = Signer(), Signer(), Signer()
        self.assets: dict[str, bytes] = {}
        self.durations: dict[str, int] = {}
        self.nodes: dict[str, bytes] = {}
        self.reports: list[tuple[str, wire.ReportBody]] = []
        self.statuses: dict[str, wire.StatusBody] = {}
        self.acknowledges = True
        self.tells_time = True
        self.cut_downloads_after: int | None = None
        self.requests: list[tuple[str, str | None]] = []
        self.mqtt_port = free_port()
        self._broker: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, "station")
        self._client.on_message = self._arrived
        self._client.on_connect = self._connected
        self._up = threading.Event()
        self._config_facts: dict[str, Any] = dict(ALL_DAY)
        station = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                station.enrol(self)

            def do_GET(self) -> None:
                station.serve_asset(self)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http_thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="station.http")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def assets_url(self) -> str:
        return f"{self.url}/api/v1/assets"

    # -- life ---------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start_broker()
        self._http_thread.start()
        self._client.connect("127.0.0.1", self.mqtt_port)
        self._client.loop_start()
        assert self._up.wait(10)
        self.publish_keys()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self._http.shutdown()
        self._http_thread.join()
        self._http.server_close()
        self.stop_broker()

    def start_broker(self) -> None:
        mosquitto = find_mosquitto()
        assert mosquitto is not None
        config = self.folder / "mosquitto.conf"
        config.write_text(
            f"listener {self.mqtt_port} 127.0.0.1\nallow_anonymous true\nuser root\nset_tcp_nodelay true\n"
            "max_queued_messages 10000\nlog_type error\n"
        )
        self._broker = subprocess.Popen([str(mosquitto), "-c", str(config)])
        for _ in range(200):
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.mqtt_port)) == 0:
                    return
            threading.Event().wait(0.02)
        raise RuntimeError("mosquitto did not come up")

    def stop_broker(self) -> None:
        if self._broker is not None:
            self._broker.kill()
            self._broker.wait()

    # -- mqtt ---------------------------------------------------------------------------------------------------------

    def _connected(self, client: mqtt.Client, *_: Any) -> None:
        client.subscribe([(topics.NodeTime.every(), 0), (topics.NodeReport.every(), 1), (topics.NodeStatus.every(), 1)])
        self._up.set()

    def _arrived(self, client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        received_ns = time.time_ns()
        topic = topics.parse(message.topic)
        match topic:
            case topics.NodeTime() if self.tells_time:
                asked = wire.decode(wire.TimeQuestionBody, message.payload)
                answer = wire.TimeAnswerBody(
                    nonce=asked.nonce, asked_ns=asked.sent_ns, received_ns=received_ns, sent_ns=time.time_ns()
                )
                ack = str(topics.NodeAck(topic.owner))
                if asked.resync:
                    floors = wire.FloorsBody(nonce=asked.nonce, floors=())
                    client.publish(ack, self.server.seal(Kind.ACK, topic.owner, floors), qos=0)
                client.publish(ack, self.server.seal(Kind.ACK, topic.owner, answer), qos=0)
            case topics.NodeReport():
                envelope = parse(message.payload)
                assert (envelope.kind, envelope.target) == (Kind.REPORT, topic.owner)
                if topic.owner in self.nodes:
                    key = Ed25519PublicKey.from_public_bytes(self.nodes[topic.owner])
                    key.verify(message.payload[-64:], b"loa/1 REPORT\0" + message.payload[:-64])
                report = wire.decode(wire.ReportBody, envelope.body)
                with self._lock:
                    self.reports.append((topic.owner, report))
                if self.acknowledges:
                    ack = wire.ReportAckBody(boot_id=report.boot_id, sequences=(report.sequence,))
                    sealed = self.server.seal(Kind.ACK, topic.owner, ack)
                    client.publish(str(topics.NodeAck(topic.owner)), sealed, qos=1)
            case topics.NodeStatus() if message.payload:
                self.statuses[topic.owner] = wire.decode(wire.StatusBody, message.payload)
            case _:
                pass

    def send(self, topic: topics.Topic, payload: bytes, *, retain: bool | None = None) -> None:
        self._client.publish(str(topic), payload, qos=topic.qos, retain=topic.retained if retain is None else retain)

    def delegations(self) -> tuple[bytes, ...]:
        def one(signer: Signer, unit: str, may: tuple[str, ...]) -> bytes:
            body = wire.DelegationBody(
                public_key=signer.public.hex(),
                unit=unit,
                may=may,
                max_class=BulletinClass.EMERGENCY,
                valid_from_ms=now_ms() - HOUR_MS,
                valid_until_ms=now_ms() + 1000 * HOUR_MS,
            )
            return self.root.seal(Kind.KEYS, unit, body)

        return (
            one(self.commune, PATH[0], ("PLAN", "CONFIG", "ALERTS", "ORDER")),
            one(self.server, PATH[1], ("ACK", "HEAD", "CONFIG")),
        )

    def publish_keys(self) -> None:
        commune, server = self.delegations()
        self.send(topics.UnitKeys(PATH[0]), wire.join_keys((commune,)))
        self.send(topics.UnitKeys(PATH[1]), wire.join_keys((server,)))

    def config(self, node: str, **facts: Any) -> None:
        body = wire.NodeConfigBody(
            path=PATH, cluster="c-" + node, assets_url=self.assets_url, **{**self._config_facts, **facts}
        )
        self.send(topics.NodeConfig(node), self.commune.seal(Kind.CONFIG, node, body))

    def plan_payload(
        self, node: str, segments: Sequence[wire.PlanSegment], *, signer: Signer | None = None, **changes: Any
    ) -> bytes:
        wanted = dict.fromkeys(segment.asset for segment in segments if segment.asset is not None)
        assets = tuple(
            wire.PlanAsset(sha256=sha, size_bytes=len(self.assets[sha]), duration_ms=self.durations[sha])
            for sha in wanted
        )
        packed = wire.pack_plan_body(wire.PlanBody(segments=tuple(segments), assets=assets))
        until_ms = now_ms() + 7 * 24 * HOUR_MS
        head = wire.plan_head(packed, valid_from_ms=now_ms() - 60_000, valid_until_ms=until_ms)
        return wire.join_plan((signer or self.commune).seal(Kind.PLAN, node, head, **changes), packed)

    def plan(self, node: str, segments: Sequence[wire.PlanSegment], **changes: Any) -> None:
        self.send(topics.NodePlan(node), self.plan_payload(node, segments, **changes))

    def alerts(self, unit: str, alerts: Sequence[wire.AlertBody] = (), *, stop_all: bool = False) -> None:
        latch = wire.StopAllLatch(latch_id="latch", since_ms=now_ms()) if stop_all else None
        body = wire.AlertSetBody(alerts=tuple(alerts), stop_all=latch)
        self.send(topics.UnitAlert(unit), self.commune.seal(Kind.ALERTS, unit, body))

    # -- http ---------------------------------------------------------------------------------------------------------

    def add_asset(self, content: bytes, duration_ms: int) -> str:
        sha = hashlib.sha256(content).hexdigest()
        self.assets[sha] = content
        self.durations[sha] = duration_ms
        return sha

    def enrolment(self, public: bytes) -> dict[str, Any]:
        with self._lock:
            node = f"node-{len(self.nodes) + 1:04d}"
            self.nodes[node] = public
        return {
            "node_id": node,
            "cluster_id": "c-" + node,
            "broker": {"host": "127.0.0.1", "port": self.mqtt_port, "tls": False, "ca_pem": None},
            "username": node,
            "password": "secret",
            "root_public_key": self.root.public.hex(),
            "path": list(PATH),
            "assets_url": self.assets_url,
            "asset_token": "asset-token",
            "server_time": "2026-01-01T00:00:00Z",
        }

    def enrol(self, request: BaseHTTPRequestHandler) -> None:
        question = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        if question["token"] != "T":
            self._answer(request, 403, b'{"code": "token_refused"}', {})
            return
        answer = self.enrolment(bytes.fromhex(question["public_key"]))
        self.config(answer["node_id"])
        self._answer(request, 201, json.dumps(answer).encode(), {})

    def serve_asset(self, request: BaseHTTPRequestHandler) -> None:
        sha = request.path.rsplit("/", 1)[-1]
        wanted = request.headers.get("Range")
        self.requests.append((sha, wanted))
        if request.headers.get("Authorization") != "Bearer asset-token":
            self._answer(request, 401, b"", {})
            return
        content = self.assets.get(sha)
        if content is None:
            self._answer(request, 404, b"", {})
            return
        etag = {"ETag": f'"{sha}"', "Accept-Ranges": "bytes"}
        if wanted is not None and request.headers.get("If-Range") == f'"{sha}"':
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            etag["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            self._answer(request, 206, content[first:], etag)
            return
        if self.cut_downloads_after is not None:
            cut, self.cut_downloads_after = self.cut_downloads_after, None
            request.send_response(200)
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content[:cut])
            request.wfile.flush()
            request.connection.shutdown(socket.SHUT_RDWR)
            request.close_connection = True
            return
        self._answer(request, 200, content, etag)

    @staticmethod
    def _answer(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)


class Relay:
    """A live stream from a thread of its own: batches paced by the machine's clock, head renewed as a server does."""

    def __init__(
        self,
        station: Station,
        stream: str,
        packets: Sequence[bytes],
        *,
        per_batch: int = 25,
        delay_ms: int = 1_500,
        lease_ms: int = 6_000,
        lose: Sequence[int] = (),
    ) -> None:
        self._station, self._stream, self._packets, self._per_batch = station, stream, packets, per_batch
        self.lease_ms, self._lose = lease_ms, frozenset(lose)
        self.renews = True
        self.key = Signer()
        self.body = wire.StreamHeadBody(
            public_key=self.key.public.hex(),
            packets_per_batch=per_batch,
            t0_utc_ms=now_ms(),
            playout_delay_ms=delay_ms,
            scope=(PATH[0],),
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"relay[{stream}]")

    def __enter__(self) -> Self:
        self.head()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def head(self) -> None:
        raw = self._station.server.seal(Kind.HEAD, self._stream, self.body, expires_ms=now_ms() + self.lease_ms)
        self._station.send(topics.StreamHead(self._stream), raw)

    def due_ms(self, media_sample: int) -> float:
        """When a sample must sound."""
        return self.body.t0_utc_ms + self.body.playout_delay_ms + media_sample / 48

    def _run(self) -> None:
        renewed = time.monotonic()
        for sequence, at in enumerate(range(0, len(self._packets) - self._per_batch + 1, self._per_batch)):
            ready_ms = self.body.t0_utc_ms + (at + self._per_batch) * 20
            if self._stop.wait(max(0.0, (ready_ms - now_ms()) / 1000)):
                return
            if self.renews and time.monotonic() - renewed >= self.lease_ms / 3_000:
                self.head()
                renewed = time.monotonic()
            if sequence in self._lose:
                continue
            batch = frames.AudioBatch(
                self._station.server.epoch, sequence, at * 960, tuple(self._packets[at : at + self._per_batch])
            )
            self._station.send(topics.StreamAudio(self._stream), frames.pack(batch, self.key.key, self._stream))
