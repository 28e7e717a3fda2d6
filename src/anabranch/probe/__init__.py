"""Family probe: one method, one file; see docs/probe.md."""

from anabranch.core.names import family

family(__name__)
