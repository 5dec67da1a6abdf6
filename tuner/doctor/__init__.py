"""Checks of the machine: the device, the database, the artifacts, disks and shared memory."""

__all__ = ["service_checks"]
