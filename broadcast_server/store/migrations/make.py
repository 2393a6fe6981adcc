"""`python -m broadcast_server.store.migrations.make (--initial | MESSAGE)`: write the next revision from the tables.

`--initial` makes the first and only revision anew; with a message the difference between the chain and the tables
becomes the next one. Same tables, same bytes. Read what it wrote: renames look like a drop and an add to it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import sqlalchemy
from alembic import command

from broadcast_server.store.migrations import VERSIONS, alembic_config, head, migrate
from broadcast_server.store.tables import Base


def make(message: str, *, is_initial: bool) -> Path:
    """Write the revision and return its file. Raises `SystemExit` where others stand on the initial one."""
    known = sorted(VERSIONS.glob("[0-9]*.py"))
    if is_initial:
        if len(known) > 1:
            raise SystemExit("there are later revisions: the initial one is not made anew any more")
        for path in known:
            path.unlink()
    number = "0001" if is_initial else f"{int(head()) + 1:04}"
    engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.StaticPool)
    if not is_initial:
        migrate(engine)
    with engine.connect() as connection:
        config = alembic_config(connection)
        config.set_main_option("file_template", f"{number}_{_slug(message)}")
        command.revision(config, message=message, rev_id=number, autogenerate=True)
    engine.dispose()
    path = VERSIONS / f"{number}_{_slug(message)}.py"
    text = path.read_text(encoding="utf-8")
    path.write_text("".join(line for line in text.splitlines(keepends=True) if "# ###" not in line), encoding="utf-8")
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if ruff is not None:
        subprocess.run([ruff, "format", "--quiet", path], check=True)
        subprocess.run([ruff, "check", "--fix", "--quiet", path], check=True)
    return path


def _slug(message: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", message.lower()).strip("_")[:40]


def main(arguments: list[str]) -> int:
    """0: written; 2: usage."""
    if len(arguments) != 1:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    is_initial = arguments[0] == "--initial"
    message = f"initial: {len(Base.metadata.tables)} tables" if is_initial else arguments[0]
    path = make("initial" if is_initial else message, is_initial=is_initial)
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
