"""Ways to reach a device. One interface (:mod:`stbench.connectors.base`), one module per way."""

from __future__ import annotations

from stbench.connectors.base import Connector
from stbench.connectors.local import LocalConnector
from stbench.devices.inventory import Device
from stbench.errors import DeviceError


def connector_for(device: Device) -> Connector:
    """The connector that a device asks for, not yet connected. Raises :class:`DeviceError`."""
    if device.connector == "local":
        return LocalConnector(device)
    if device.connector == "ssh":
        # Imported here: paramiko takes 0.2 s, which nobody without boards should wait.
        from stbench.connectors.ssh import SshConnector

        return SshConnector(device)
    raise DeviceError(f"{device.name}: there is no connector {device.connector}", hint="local or ssh")
