"""Windows over recorded episodes."""
