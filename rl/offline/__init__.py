"""Agents that learn from recorded episodes alone."""
