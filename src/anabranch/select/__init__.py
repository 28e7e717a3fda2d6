"""Family select: one method, one file; see docs/select.md."""

from anabranch.core.names import family

family(__name__)
