"""Family prompt: one method, one file; see docs/prompt.md."""

from anabranch.core.names import family

family(__name__)
