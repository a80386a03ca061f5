"""The consortium's coordinator: runs rounds and only ever sees sums. Imports only `common`."""
