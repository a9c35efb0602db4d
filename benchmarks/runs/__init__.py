"""What a run is made of: cells measured in rounds, and experiments that ask another question than how fast.

The commands beside this folder use it; which servers take part is theirs to say.
"""
