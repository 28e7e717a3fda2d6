"""Family world: one method, one file; see docs/world.md."""

from anabranch.core.names import family

family(__name__)
