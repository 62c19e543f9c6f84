"""The selective scan of state-space layers, by whatever computes it fast here."""
