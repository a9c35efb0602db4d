"""What is asked of a server: scenarios, the texts they are made of, and their lengths in tokens."""
