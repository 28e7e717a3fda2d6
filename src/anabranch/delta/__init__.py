"""Family delta: one method, one file; see docs/delta.md."""

from anabranch.core.names import family

family(__name__)
