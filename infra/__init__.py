"""Where the product runs: the local stack, and the deployment."""
