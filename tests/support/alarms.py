"""Two people who agree to an alarm, and a template one of them may raise alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from broadcast_server.control import break_glass, consents
from broadcast_server.control.break_glass import NewTemplate, TemplateView
from broadcast_server.control.desk import Desk
from broadcast_server.control.emergency import Correction, EmergencyView, Message, NewEmergency
from broadcast_server.store.words import Role
from tests.support.people import Person, a_person


@dataclass(frozen=True, slots=True)
class Duo:
    """`first` proposes, `second` agrees."""

    desk: Desk
    first: Person
    second: Person

    async def raise_(self, request: NewEmergency) -> EmergencyView:
        """Launched by both."""
        return await self.agree(await self.propose(request), request.confirm)

    async def propose(self, request: NewEmergency) -> EmergencyView:
        return await consents.propose(self.desk, self.first.actor, request, self.first.proof())

    async def correct(self, request: Correction, confirm: str = "KHẨN CẤP") -> EmergencyView:
        """What replaces it, agreed to by both."""
        proposed = await consents.correct(self.desk, self.first.actor, request, self.first.proof())
        return await self.agree(proposed, confirm)

    async def agree(self, proposed: EmergencyView, confirm: str = "KHẨN CẤP", **more: Any) -> EmergencyView:
        """The second person's part. `more`: what that person holds to be true instead."""
        told = {"content_hash": proposed.row.content_hash, "confirm": confirm, **more}
        return await consents.approve(self.desk, self.second.actor, proposed.row.id, self.second.proof(), **told)


async def a_duo(desk: Desk, unit_id: str, role: Role = Role.LEADER) -> Duo:
    """Two leaders of a unit, each with password and phone."""
    return Duo(desk, await a_person(desk, role, unit_id), await a_person(desk, role, unit_id))


async def a_template(duo: Duo, author: Person, unit_id: str, **message: Any) -> TemplateView:
    """A template of a unit, written by somebody and approved by two others."""
    told = {"hazard": "flood", "phrases": ("go_to_high_ground",), **message}
    written = await break_glass.write_template(duo.desk, author.actor, NewTemplate(unit_id, "Vỡ đê", Message(**told)))
    view = written
    for person in (duo.first, duo.second):
        view = await break_glass.approve_template(
            duo.desk, person.actor, written.row.id, person.proof(), content_hash=written.row.content_hash
        )
    return view
