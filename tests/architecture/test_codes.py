"""Whatever the server refuses, it can say so in both languages."""

import ast
import string
from collections.abc import Iterator

from broadcast_server import catalogue
from broadcast_server.control.grounds import NODE_REASONS
from broadcast_server.domain import policy, precedence, timeline
from tests.architecture.sources import ROOT

RAISED = {"BroadcastError", "Invalid", "Refused", "NotFound", "Conflict", "Unavailable", "Corrupt"}
TOLD = {"Violation", "Reason"}


def texts(node: ast.expr) -> Iterator[str]:
    """The text an argument may be, where it stands in the source."""
    match node:
        case ast.Constant(value=str(value)):
            yield value
        case ast.IfExp():
            yield from texts(node.body)
            yield from texts(node.orelse)


def codes() -> dict[str, str]:
    """Every code and fix that is raised, with the place of one that does."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "broadcast_server").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        ours = (
            RAISED
            | TOLD
            | {
                node.name
                for node in ast.walk(tree)
                if isinstance(node, ast.ClassDef)
                and any(isinstance(base, ast.Name) and base.id in RAISED for base in node.bases)
            }
        )
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name not in ours:
                continue
            arguments = [
                *node.args[:1],
                *(keyword.value for keyword in node.keywords if keyword.arg in {"fix", "code"}),
            ]
            for argument in arguments:
                for text in texts(argument):
                    found.setdefault(text, f"{path.relative_to(ROOT)}:{node.lineno}")
    return found


def test_every_code_that_is_raised_has_its_sentences():
    missing = sorted(f"{code}  ({place})" for code, place in codes().items() if not catalogue.has_sentence(code))

    assert missing == [], "add them to broadcast_server/locale/codes/<noun>.yaml:\n" + "\n".join(missing)


def test_every_reason_of_a_node_has_its_sentence():
    missing = [code for code in sorted(NODE_REASONS) if not catalogue.has_sentence(f"node_{code}")]

    assert missing == []


def test_every_sentence_is_there_in_both_languages_and_names_the_same_facts():
    wrong = []
    for code, entry in catalogue.entries().items():
        if set(entry) != {"vi", "en"} or not all(isinstance(text, str) and text.strip() for text in entry.values()):
            wrong.append(code)
            continue
        names = [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in entry.values()]
        if names[0] != names[1]:
            wrong.append(f"{code}: {names[0] ^ names[1]} is in one language only")

    assert wrong == []


def test_every_code_has_one_home():
    homes: dict[str, list[str]] = {}
    for path in sorted((ROOT / "broadcast_server/locale/codes").glob("*.yaml")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line and line[0].isalpha():
                homes.setdefault(line.partition(":")[0], []).append(path.name)

    assert {code: names for code, names in homes.items() if len(names) > 1} == {}


def test_every_word_people_are_shown_has_its_sentences():
    words = [*policy.Code, *precedence.Rule, *timeline.DropReason]

    assert [word.value for word in words if not catalogue.has_sentence(word.value)] == []


def test_a_sentence_takes_its_facts_and_never_fails():
    assert (
        catalogue.sentence("duplicate", {"what": "users.login"}, "en") == "There is one like it already (users.login)."
    )
    assert catalogue.sentence("duplicate", {}, "en") == "There is one like it already (…)."
    assert catalogue.sentence("not_a_choice", {"field": "klass", "expected": ["a", "b"]}, "vi").endswith("a, b.")
    assert catalogue.sentence("duplicate", {"what": "{what.__class__}"}, "vi") == "Đã có mục trùng ({what.__class__})."


def test_a_code_without_a_sentence_is_shown_as_it_is_and_counted():
    before = catalogue.unknown["nobody_wrote_this"]

    assert catalogue.sentence("nobody_wrote_this", {"field": "x"}, "vi") == "nobody_wrote_this"
    assert catalogue.unknown["nobody_wrote_this"] == before + 1


def test_the_language_is_what_the_reader_asks_for_and_vietnamese_otherwise():
    asked = {
        None: "vi",
        "": "vi",
        "en": "en",
        "en-US,en;q=0.9": "en",
        "vi-VN,vi;q=0.9,en;q=0.8": "vi",
        "en;q=0.3, vi;q=0.7": "vi",
        "fr, de;q=0.5": "vi",
        "en;q=nonsense": "vi",
        "*": "vi",
    }
    assert {header: catalogue.locale_of(header) for header in asked} == asked
