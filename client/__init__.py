"""One hospital: reads its own archive, trains locally, answers orders. Imports only `common`."""
