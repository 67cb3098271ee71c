"""Find and import the images of a line, and inspect what is in them."""
