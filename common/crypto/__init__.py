"""The one door of the `cryptography` library: key streams, and what secure aggregation needs."""
