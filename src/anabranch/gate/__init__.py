"""Family gate: one method, one file; see docs/gate.md."""

from anabranch.core.names import family

family(__name__)
