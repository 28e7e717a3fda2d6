"""Family compress: one method, one file; see docs/compress.md."""

from anabranch.core.names import family

family(__name__)
