"""What the domains of mini_tau2 and mini_vita share, and the mixture of them all."""
