"""A matrix brought up to date: stale steps are run, each model is packaged, made into images and reported.

What is stale is `plan`'s to say; what a package or an image is belongs in `image`.
"""
