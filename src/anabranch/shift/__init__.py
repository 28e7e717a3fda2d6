"""Family shift: one method, one file; see docs/shift.md."""

from anabranch.core.names import family

family(__name__)
