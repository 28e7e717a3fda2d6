"""Family backbone: one method, one file; see docs/backbone.md."""

from anabranch.core.names import family

family(__name__)
