"""VAE + diffusion agents: a spec names their parts by strings of a closed table, never by import paths."""
