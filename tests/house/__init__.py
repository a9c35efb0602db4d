"""The house itself: who imports whom, and how large its rooms are."""
