"""The wire described from the code that speaks it: `docs/protocol.md`, with field tables and JSON Schemas."""

from __future__ import annotations

import json
from typing import Any, Final, get_args

from speaker_protocol import FORMAT_VERSION, brief, claims, frames, hazards, messages, rules, signing, topics

_ON_TOPIC: Final = {
    "NodePlan": "envelope PLAN around PlanHead (after its length in 4 bytes), then the packed PlanBody (zlib)",
    "NodeConfig": "envelope CONFIG around NodeConfigBody",
    "NodeOrder": "envelope ORDER around OrderBody",
    "NodeAck": "envelope ACK around ReportAckBody, TimeAnswerBody or FloorsBody",
    "UnitAlert": "envelope ALERTS around AlertSetBody, as JSON or in its brief form",
    "UnitKeys": "envelopes KEYS (DelegationBody, RevocationListBody, RevocationBody), each after its length in 2 bytes",
    "StreamHead": "envelope HEAD around StreamHeadBody",
    "StreamAudio": "audio batch",
    "NodeStatus": "bare StatusBody",
    "NodeReport": "envelope REPORT around ReportBody, signed by the device",
    "NodeTime": "bare TimeQuestionBody",
}


_CHECKS_FROM: Final = next(
    number for number, line in enumerate((signing.__doc__ or "").strip().splitlines()) if line.startswith("Keys come")
)


def json_schemas() -> dict[str, Any]:
    """JSON Schema (2020-12) of every body, by name."""
    return {body.__name__: body.model_json_schema() for body in messages.ALL_BODIES}


def document() -> str:
    """`docs/protocol.md`, whole."""
    parts = [
        "# The wire between server and node",
        "",
        "Generated from `speaker_protocol` by `python -m speaker_protocol`; do not edit.",
        "",
        f"Format version {FORMAT_VERSION}. MQTT 3.1.1; nothing of MQTT 5 is relied on.",
        f"A payload is at most {signing.MAX_ENVELOPE_BYTES // 1024} KiB.",
        "",
        "## Joining",
        "",
        "1. The node enrols over HTTP (`POST /api/v1/nodes/enrol`) and learns broker, credential, root key and path.",
        "2. It connects with its will (`status`, link offline) and subscribes to its own topics and to `alert` and",
        "   `keys` of every unit on its path.",
        "3. From `keys` it learns who may speak for its places: the root (known from enrolment) names an authority,",
        "   which may only delegate; the authority names the keys that speak. All of it is kept over a power cut.",
        "4. From `plan` it learns what to sound, fetches the assets it lacks by their hash, and says so in `status`.",
        "5. Shortly before a segment of a stream it subscribes to that stream's `head` and `audio`.",
        "6. What it sounded it reports, again and again, until the server acknowledged it.",
        "",
        "A node without memory (new, or its flash was wiped) obeys nothing, retained or not, until the server answered",
        "a time question of its own, `resync` set, with `FloorsBody` and the same nonce, and it holds a list of",
        "revocations that is not older than the answer says.",
        "",
        "## Topics",
        "",
        "| Topic | Direction | QoS | Retained | Payload | Meaning |",
        "|---|---|---|---|---|---|",
        *(_topic_row(kind) for kind in topics.ALL_TOPICS),
        "",
        "The broker lets a node (user name = node id) do exactly this:",
        "",
        "```",
        *topics.node_acl(),
        "```",
        "",
        "## The envelope",
        "",
        "Big-endian header, target (UTF-8), body, Ed25519 signature (64 bytes) over",
        '`"loa/1 " + KIND + "\\0"` + everything before the signature.',
        "",
        *_header_table(signing.HEADER_FIELDS),
        "",
        "| Kind | Number |",
        "|---|---|",
        *(f"| {kind.name} | {kind.value} |" for kind in signing.Kind),
        "",
        *(signing.__doc__ or "").strip().splitlines()[_CHECKS_FROM:],
        "",
        "Reasons for which a node refuses, each counted by itself: "
        + ", ".join(f"`{reason}`" for reason in signing.Refusal)
        + ".",
        "",
        "## The audio batch",
        "",
        "Big-endian header, packets (each after its length in 2 bytes), Ed25519 signature of the stream's own key over",
        '`"loa/1 AUDIO\\0" + stream id + "\\0"` + everything before the signature.',
        "",
        *_header_table(frames.FIELDS),
        "",
        "## Who may sound",
        "",
        "| Level | Number |",
        "|---|---|",
        *(f"| {level.name} | {level.value} |" for level in sorted(rules.Level, reverse=True)),
        "",
        "What a new item does (rows) to the one that sounds (columns), if it outranks it:",
        "",
        "| new \\ sounding | " + " | ".join(kind.value for kind in rules.Kind) + " |",
        "|---" * (len(rules.Kind) + 1) + "|",
        *(
            f"| {new.value} | " + " | ".join(rules.MATRIX[new][old].value for old in rules.Kind) + " |"
            for new in rules.Kind
        ),
        "",
        "## A round of an alert",
        "",
        "Attention tone, then the message so many times over; a new round every so often. The node's own words stand",
        "in for a recording that is not held; each phrase has its slot whatever the voice, so that poles stay in step.",
        "",
        "| Danger | Number | Slot, ms | Tone | Vietnamese |",
        "|---|---|---|---|---|",
        *(
            f"| {one.code} | {one.number} | {one.slot_ms} | {one.pattern.value} | {one.text} |"
            for one in hazards.HAZARDS.values()
        ),
        "",
        "| Phrase | Number | Slot, ms | Vietnamese |",
        "|---|---|---|---|",
        *(f"| {one.code} | {one.number} | {one.slot_ms} | {one.text} |" for one in hazards.PHRASES.values()),
        *(f"| {one.code} | {one.number} | {one.slot_ms} | {one.text} |" for one in hazards.DIGITS.values()),
        "",
        "## Enrolment",
        "",
        *(claims.__doc__ or "").strip().splitlines()[2:-2],
        "",
        "## The brief form of an alert set",
        "",
        *(brief.__doc__ or "").strip().splitlines()[2:],
        "",
        "## Bodies",
        "",
        *(line for body in messages.ALL_BODIES for line in _body_table(body)),
        "## JSON Schemas",
        "",
        "```json",
        json.dumps(json_schemas(), indent=1, sort_keys=True, ensure_ascii=False),
        "```",
        "",
    ]
    return "\n".join(parts)


def _topic_row(kind: type[topics.Topic]) -> str:
    place = f"`{topics.ROOT}/{kind.family}/{{{kind.family[0]}}}/{kind.leaf}`"
    retained = "yes" if kind.retained else "no"
    return f"| {place} | {kind.direction} | {kind.qos} | {retained} | {_ON_TOPIC[kind.__name__]} | {kind.meaning} |"


_WIDTH: Final = {"B": "1 byte", "H": "2 bytes", "I": "4 bytes", "Q": "8 bytes", "8s": "8 bytes"}


def _header_table(fields: tuple[signing.HeaderField, ...]) -> list[str]:
    return [
        "| Field | Size | Meaning |",
        "|---|---|---|",
        *(f"| {part.name} | {_WIDTH[part.code]} | {part.meaning} |" for part in fields),
    ]


def _body_table(body: type[messages.Body]) -> list[str]:
    rows = []
    for name, info in body.model_fields.items():
        needed = "yes" if info.is_required() else "no"
        rows.append(f"| {name} | {_type_name(info.annotation)} | {needed} |")
    return [
        f"### {body.__name__}",
        "",
        (body.__doc__ or "").strip(),
        "",
        "| Field | Type | Required |",
        "|---|---|---|",
        *rows,
        "",
    ]


def _type_name(annotation: Any) -> str:
    inner = [part for part in get_args(annotation) if part is not type(None)]
    if inner:
        base = getattr(getattr(annotation, "__origin__", None), "__name__", "")
        names = ", ".join("…" if part is Ellipsis else _type_name(part) for part in inner)
        return names if base in {"", "UnionType", "Union", "Annotated"} else f"{base} of {names}"
    return getattr(annotation, "__name__", str(annotation))
