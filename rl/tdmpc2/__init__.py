"""TD-MPC2: planning in a learned latent world."""
