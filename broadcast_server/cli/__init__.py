"""The command line: every command is a thin call into `control` or `app`. Exit 0 done, 2 usage, 3 could not start."""

from __future__ import annotations

import typer

from broadcast_server.cli import (
    assets,
    backup,
    bundles,
    certificates,
    clock,
    devices,
    emergencies,
    feeds,
    keys,
    people,
    places,
    schedules,
    serve,
)

app = typer.Typer(
    name="broadcast-server",
    help="Máy chủ điều khiển truyền thanh cơ sở. Control server of grassroots radio.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
serve.register(app)
backup.register(app)
app.add_typer(people.users, name="user", help="People and their roles.")
app.add_typer(people.tokens, name="token", help="Bearer tokens of the API.")
app.add_typer(places.app, name="place", help="Org units and station policy.")
app.add_typer(devices.app, name="device", help="Boxes and nodes: claim codes, the binding check, quarantine.")
app.add_typer(feeds.app, name="feed", help="Feeds, their offers and push credentials.")
app.add_typer(schedules.app, name="schedule", help="Import, export and preview schedules.")
app.add_typer(emergencies.app, name="emergency", help="Emergencies (khẩn cấp).")
app.add_typer(emergencies.stops, name="stop-all", help="Stop-all (dừng tất cả).")
app.add_typer(clock.app, name="clock", help="The server's own clock.")
app.add_typer(certificates.app, name="certificates", help="The local certificate authority.")
app.add_typer(bundles.app, name="bundle", help="Files carried to communes without a network, and back.")
app.add_typer(keys.app, name="keys", help="The signing keys: the root, delegations, rotation, revocation.")
app.add_typer(assets.app, name="assets", help="Audio by its hash.")


def main() -> None:
    """The `broadcast-server` program."""
    app()
