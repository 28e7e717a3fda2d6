"""Family pretrain: one method, one file; see docs/pretrain.md."""

from anabranch.core.names import family

family(__name__)
