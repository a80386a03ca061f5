"""Does the code keep what epsilon promises? A coin puts canaries in or leaves them out, and somebody tries to tell."""
