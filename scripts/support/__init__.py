"""What several scripts and tests use: a server of our own on this machine, and a service without a model behind it."""
