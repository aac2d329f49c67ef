"""devices.yaml and what is known of each device."""
