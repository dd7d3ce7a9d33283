"""What was done: the record in an erasure's folder, the ledger of this machine, comparing, signing and the way back."""
