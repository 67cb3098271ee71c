"""Find a line's images and say what is in them."""
