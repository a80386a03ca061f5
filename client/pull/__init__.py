"""Speaking with a hospital's archive: over DICOMweb (QIDO-RS, WADO-RS, STOW-RS) or DIMSE (C-FIND, C-GET, C-STORE).

What is fetched lies in clear in a folder for its owner alone, as it does in the archive: `client index` then keeps the
allow-listed tags, hashes identifiers and flags burned-in annotation. Nothing of an archive's answer is printed or
logged: counts only.
"""
