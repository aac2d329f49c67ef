"""What would make a device's numbers wrong, from a capture that can be mailed."""
