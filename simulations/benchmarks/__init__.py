"""One small script per hot path: a ratio against a named peer in the same run, a table, and JSON as the last line."""
