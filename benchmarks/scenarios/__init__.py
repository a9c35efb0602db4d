"""The scenarios and their texts: what is asked, of how many tokens. How it travels belongs in `servers`."""
