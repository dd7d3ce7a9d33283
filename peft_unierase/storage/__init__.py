"""Files: opened without trust, written whole or not at all, told apart by digests, found in a folder or on the Hub."""
