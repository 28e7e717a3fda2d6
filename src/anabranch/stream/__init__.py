"""Family stream: one method, one file; see docs/stream.md."""

from anabranch.core.names import family

family(__name__)
