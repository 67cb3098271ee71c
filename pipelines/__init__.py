"""Define the order in which the steps run, when they run, and on which backend."""
