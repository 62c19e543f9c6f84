"""Training of the diffusion agents (training.py, rl_trainer.py) and their evaluation (evaluator.py)."""
