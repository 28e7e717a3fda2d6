"""Family balance: one method, one file; see docs/balance.md."""

from anabranch.core.names import family

family(__name__)
