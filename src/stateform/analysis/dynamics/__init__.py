"""How states and gradients grow, and what they can express."""
