"""Networks of the diffusion agents, and the noise schedules they are sampled with."""
