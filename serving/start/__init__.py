"""From a manifest to a server that is ready: boot, engines, layout of cores, proof, warm-up; the verbs of the image.

This is where choice, cache, backends, tasks and batching are wired together, once.
"""
