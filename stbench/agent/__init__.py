"""The part of stbench that runs on the device: standard library only, Python >= 3.8.

It imports nothing else of stbench and only relatively, so that it also runs from a zipapp or a copied
directory.
"""

__version__ = "0.1.0"
