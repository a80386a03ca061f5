"""Patient-level differentially private training: sampling, one clip per patient, noise, and the test before it."""
