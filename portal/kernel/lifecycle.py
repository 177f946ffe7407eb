"""States of a resource and the changes between them that are allowed."""

from collections.abc import Mapping
from dataclasses import dataclass

from portal.kernel.errors import StateConflict


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """The state machine of one resource type.

    `transitions` maps a state to the states that may follow; `transient` states are left by a job, `ended` ones never; `tones` gives the
    colour family of a state where it is not told by the above: ok, warn, bad, busy, off.
    """

    initial: str
    transitions: Mapping[str, frozenset[str]]
    transient: frozenset[str] = frozenset()
    ended: frozenset[str] = frozenset()
    tones: Mapping[str, str] | None = None

    @property
    def states(self) -> frozenset[str]:
        """Every state there is."""
        return frozenset(self.transitions) | self.ended

    def check(self, current: str, wanted: str) -> None:
        """Raise StateConflict if `wanted` may not follow `current`."""
        if current != wanted and wanted not in self.transitions.get(current, frozenset()):
            raise StateConflict(f"{current} cannot become {wanted}.", details={"state": current, "wanted": wanted})

    def tone(self, state: str) -> str:
        """Colour family of a state for the console."""
        if state in self.transient:
            return "busy"
        return (self.tones or {}).get(state, "off" if state in self.ended else "ok")
