"""Family bench: one method, one file; see docs/bench.md."""

from anabranch.core.names import family

family(__name__)
