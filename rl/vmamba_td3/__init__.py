"""VMamba-TD3: twin delayed DDPG on sequences of depth images and states, encoded by a visual state space model."""
