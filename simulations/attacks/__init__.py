"""Attacks on secure aggregation, carried out on the real clients: Fedward's, all refused, beside Flower's."""
