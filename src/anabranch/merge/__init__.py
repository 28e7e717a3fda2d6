"""Family merge: one method, one file; see docs/merge.md."""

from anabranch.core.names import family

family(__name__)
