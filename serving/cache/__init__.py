"""A profile's files as verified local files, from the image, a folder, S3, HTTP or a registry.

Nothing is parsed here; bytes leave this package only after their digest was checked.
"""
