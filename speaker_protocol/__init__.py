"""What server and node agree on, defined once; it imports nobody of ours.

`topics` names every address · `messages` every body · `signing` the one envelope · `frames` the audio batch ·
`rules` who may sound. `python -m speaker_protocol` prints the generated description (`docs/protocol.md`).
"""

from __future__ import annotations

FORMAT_VERSION = 1
"""Version of envelope and bodies. The server speaks N and N-1; a node refuses what it does not know."""

EVERYWHERE = "*"
"""In a delegation, in the place of a unit: every place. No unit has this id, it cannot be a topic's level."""

OLDEST_FORMAT_VERSION = 1
"""The oldest version still understood (N-1 once there is an N > 1)."""
