"""Write a release to a bucket or a registry: files by digest first, the pointer or tag last, one winner.

The document itself belongs in `release`; reading and comparing releases in `inspect`.
"""
