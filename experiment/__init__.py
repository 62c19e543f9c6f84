"""From a spec to runs to outcomes. Knows nothing of learning and imports no torch."""
