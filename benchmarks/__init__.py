"""The same work done by us and by others, or measured against a stated behaviour."""
