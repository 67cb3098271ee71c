"""In what order the steps run, when, and on which backend."""
