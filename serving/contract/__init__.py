"""What factory and server agree on: the profile, the manifest, and the strict YAML that it is written in.

The server owns these forms since it must read them in every image; the factory imports them.
"""
