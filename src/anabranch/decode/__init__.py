"""Family decode: one method, one file; see docs/decode.md."""

from anabranch.core.names import family

family(__name__)
