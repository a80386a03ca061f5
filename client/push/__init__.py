"""Storing what `client predict` made in the hospital's archive, beside the images that it was made of."""
