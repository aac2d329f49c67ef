"""The part of stbench that runs on the device: standard library only, Python >= 3.8."""
